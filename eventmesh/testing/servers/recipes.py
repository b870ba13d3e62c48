"""All kinds of servers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from eventmesh.errors import UsageError
from eventmesh.testing.servers import (
    mariadb_server,
    pgbouncer_server,
    postgres_server,
    rabbitmq_server,
    redis_server,
)
from eventmesh.testing.servers.recipe import Recipe

_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.kind: recipe
        for recipe in (
            redis_server.RECIPE,
            rabbitmq_server.RECIPE,
            postgres_server.RECIPE,
            mariadb_server.RECIPE,
            pgbouncer_server.RECIPE,
        )
    }
)

KINDS = tuple(_RECIPES)


def recipe_of(kind: str) -> Recipe:
    """The recipe of a kind; UsageError for an unknown one."""
    if kind not in _RECIPES:
        raise UsageError(f"There is no server {kind!r} for tests; known are {', '.join(KINDS)}.")
    return _RECIPES[kind]
