"""The story of a mesh, as people read it."""

from __future__ import annotations

from eventmesh.testing.mesh.story import Happening, draw


def test_messages_are_arrows_between_services() -> None:
    drawn = draw(
        [
            Happening(0.0, "handled", "payments", "capture #1", "orders"),
            Happening(1.5, "retried", "orders", "captured #2 again in 1 s", "payments"),
            Happening(2.0, "fault", "payments", "payments/1 killed"),
            Happening(3.0, "handled", "orders", "closed #3", "orders"),
        ]
    )
    assert drawn.splitlines() == [
        "      time  orders                    payments",
        "     0.000  ├─capture #1──────────────▶",
        "     1.500  ◀─captured #2 again in 1…─┤",
        "     2.000  │                         ✖ payments/1 killed",
        "     3.000  ├↺ closed #3              │",
    ]


def test_of_a_very_long_story_the_beginning_and_the_end_are_shown() -> None:
    drawn = draw([Happening(n, "note", "orders", f"note {n}") for n in range(1_000)]).splitlines()
    assert "note 0" in drawn[1]
    assert "600 lines left out" in drawn[201]
    assert "note 999" in drawn[-1]


def test_where_nothing_happened_the_story_says_so() -> None:
    assert draw([]) == "nothing happened"
