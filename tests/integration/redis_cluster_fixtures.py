"""A Redis Cluster of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.redis_clusters import Cluster, create_cluster, member
from tests.integration.redis_nodes import nodes


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with nodes(tmp_path) as keep:
        members = [keep(member(tmp_path / f"member{number}")) for number in range(4)]
        password = members[0].password
        for node in members:
            node.password = password
            node.settings |= {"requirepass": password, "masterauth": password}
            node.launch()
        for node in members:
            node.until_it_answers()
        yield create_cluster(members)
