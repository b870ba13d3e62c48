"""Services that share a database must declare it, each naming the other."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import combinations

from eventmesh.contracts.fleet.facts import DatabaseUse, Facts
from eventmesh.contracts.problem import Problem


def shared_databases(facts: Facts) -> Iterator[Problem]:
    """EM056 for services that share a database without declaring it, or define the same table.
    EM059 for a declaration that is not true, as far as the database URLs are configured here.

    Both services must declare it, so that neither team decides for the other.
    """
    used: dict[str, list[DatabaseUse]] = {}
    for use in sorted(facts.databases, key=lambda each: each.service):
        if use.database:
            used.setdefault(use.database, []).append(use)
    for database, uses in sorted(used.items()):
        pairs = [(one, two) for one, two in combinations(uses, 2) if one.service != two.service]
        undeclared = [pair for pair in pairs if not _both_declare_it(*pair)]
        if undeclared:
            yield _undeclared(database, undeclared)
        for one, two in pairs:
            same = sorted(one.tables & two.tables)
            if (one, two) not in undeclared and same and one.metadata != two.metadata:
                yield Problem(
                    "EM056",
                    "error",
                    _subject((one.service, two.service)),
                    f"They share the database {database}, and each of them defines {_tables(same)} "
                    f"in it: the one that starts first creates it.",
                    "Rename the tables of one of them, or let both use the same MetaData.",
                    parties=(one.service, two.service),
                    place=two.place or one.place,
                    marks=("tables",),
                )
    for use in facts.databases:
        yield from _false_declarations(facts, use)


def _both_declare_it(one: DatabaseUse, two: DatabaseUse) -> bool:
    return two.service in one.shares_with and one.service in two.shares_with


def _undeclared(database: str, pairs: Sequence[tuple[DatabaseUse, DatabaseUse]]) -> Problem:
    uses = list({use.service: use for pair in pairs for use in pair}.values())
    parties = tuple(sorted(use.service for use in uses))
    missing: dict[str, list[str]] = {}
    details = []
    for one, two in pairs:
        for use, other in ((one, two), (two, one)):
            if other.service not in use.shares_with:
                missing.setdefault(use.service, []).append(other.service)
            else:
                details.append(f"{use.service} declares it, and {other.service} does not")
        if same := sorted(one.tables & two.tables):
            how = "use the same MetaData, with" if one.metadata == two.metadata else "both define"
            details.append(f"{one.service} and {two.service} {how} {_tables(same)}")
    first = next(use for use in uses if use.service in missing)
    declared = " and ".join(
        f'Service("{service}", shares_database_with={_quoted(others)})'
        for service, others in sorted(missing.items())
    )
    return Problem(
        "EM056",
        "error",
        _subject(parties),
        f"They share the database {database} without both declaring it"
        f"{': ' + '; '.join(dict.fromkeys(details)) if details else ''}.",
        f"Give each a database of its own, or declare it: {declared}.",
        parties=parties,
        place=first.place,
    )


def _false_declarations(facts: Facts, use: DatabaseUse) -> Iterator[Problem]:
    others = {each.service: each for each in facts.databases}
    for name in dict.fromkeys(use.shares_with):
        other = others.get(name)
        if name == use.service:
            why = "which is the service itself"
        elif name not in facts.services:
            why = "which does not exist"
        elif (
            other is not None
            and use.given
            and other.given
            and use.database
            and other.database
            and use.database != other.database
        ):
            why = f"which uses another one ({other.database} instead of {use.database})"
        else:
            continue
        near = difflib.get_close_matches(name, [each for each in facts.services if each != name], 1)
        yield Problem(
            "EM059",
            "warning",
            f"service {use.service}",
            f"It declares that it shares its database with {name}, {why}.",
            (f"Did you mean {near[0]}? " if near and name not in facts.services else "")
            + f"Remove {name} from shares_database_with.",
            parties=(use.service,),
            place=use.place,
            marks=(name,),
        )


def _subject(names: Sequence[str]) -> str:
    return f"services {', '.join(sorted(names))}"


def _tables(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"table {shown}" if len(names) == 1 else f"tables {shown}"


def _quoted(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
