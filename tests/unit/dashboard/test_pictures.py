"""What is drawn and kept, whatever its names are."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from eventmesh.dashboard.drawing import Edge, Node, graph, sparkline
from eventmesh.dashboard.selections import Selection, Shelf, groups, select
from eventmesh.operations.dead_letters import LetterListing, LetterSummary

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(
    st.lists(st.lists(st.text(max_size=50), max_size=5, unique=True), max_size=4),
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=20),
    st.booleans(),
)
def test_any_graph_is_a_picture_with_all_its_nodes(
    names: list[list[str]], pairs: list[tuple[int, int]], downwards: bool
) -> None:
    ranks = [
        [Node(f"{rank} {name}", (name,), href="/x") for name in row]
        for rank, row in enumerate(names)
    ]
    ids = [node.id for rank in ranks for node in rank]
    edges = [
        Edge(ids[start], ids[end]) for start, end in pairs if start < len(ids) and end < len(ids)
    ]
    picture = str(graph(ranks, edges, "a picture", downwards=downwards))
    drawn = ElementTree.fromstring(picture)  # noqa: S314  # it is ours
    assert len(drawn.findall("a/g/rect")) == len(ids)
    assert len(drawn.findall("path")) == len(edges)


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=60))
def test_any_figures_are_a_line_within_the_picture(values: list[float | None]) -> None:
    picture = str(sparkline(values, "ready"))
    if not picture:
        assert len([value for value in values if value is not None]) < 2
        return
    for line in ElementTree.fromstring(picture).findall("polyline"):  # noqa: S314  # it is ours
        points = [tuple(map(float, each.split(","))) for each in line.attrib["points"].split()]
        assert all(0 <= x <= 120.1 and 0 <= y <= 28 for x, y in points)


def letter(number: int, name: str, error: str) -> LetterSummary:
    return LetterSummary(f"l{number}", name, None, "m", "reason", error, 1, NOW, 1, None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=40))
def test_each_dead_letter_is_in_exactly_one_group(kinds: list[tuple[str, str]]) -> None:
    letters = tuple(letter(number, *kind) for number, kind in enumerate(kinds))
    listing = LetterListing("shop", "shop.bill", NOW, letters, False)
    found = groups(letters)
    chosen = [each.id for group in found for each in select(listing, group)]
    assert sorted(chosen) == sorted(each.id for each in letters)
    assert [group.number for group in found] == [len(select(listing, group)) for group in found]
    assert select(listing, None) == letters
    assert select(listing, None, ["l0", "unknown"]) == letters[:1]


def test_only_the_newest_are_kept_by_number_and_by_size() -> None:
    shelf: Shelf[Selection] = Shelf(most=3, most_letters=10)
    small = Selection("shop", "shop.bill", (letter(0, "a", "x"),))
    names = [shelf.put(small) for _ in range(4)]
    assert [shelf.get(name) is not None for name in names] == [False, True, True, True]
    large = shelf.put(Selection("shop", "shop.bill", small.letters * 20))
    assert shelf.get(large) is not None  # the newest, although it is too large
    assert all(shelf.get(name) is None for name in names)
    assert shelf.get(None) is None
