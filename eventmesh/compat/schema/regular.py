"""Compares patterns as automata: is there a text that matches these and none of those?

Whether every text that matches `^ab$` also matches `^a` is the same question as whether no text
matches the first and not the second. So `example` walks the automata of all patterns side by side,
one character at a time, and returns the shortest such text, or None once all states have been
visited, which is a proof. It tries one character for each set that no pattern tells apart: for
`[a-z]` and `\\d` one lower-case letter, one digit and one other character are enough.

A pattern is searched for, as JSON Schema defines it: without anchors, any text may stand before
and after the match. Validators differ on `\\d`, `\\w` and the dot. Patterns are read as ECMA-262
has it or, with `unicode`, as engines read them that count the digits and letters of all scripts; a
proof must hold for both. `Irregular` is raised for what is not a regular language (look-around,
back-references, word boundaries), for what engines read differently, and for patterns that are too
large. The work is bounded by steps, so that a pattern such as `(a|b)*a(a|b){20}`, whose
deterministic automaton has two million states, cannot stall anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from eventmesh.compat.budget import StepBudget

MAX_STATES = 2_000
MAX_STEPS = 4_000

Range = tuple[int, int]
Ranges = tuple[Range, ...]

_LAST = 0x10FFFF
_ANY: Ranges = ((0, _LAST),)
_DIGITS: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = (
    (9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
# Beyond ASCII, one block of digits and one of letters stand for all that the Unicode engines know.
_MORE_DIGITS: Ranges = ((0x0660, 0x0669),)
_MORE_WORD: Ranges = ((0x00E0, 0x00F6), (0x0660, 0x0669))
_PLAIN = "aA0b1 -_.:/@,é😀"
"""The characters that examples are made of, the first one that fits."""


class Irregular(Exception):
    """The pattern is not a regular language that can be compared here; the message says why."""


@dataclass(slots=True)
class _Automaton:
    """A nondeterministic automaton.

    Its states have moves that read one character of some ranges, free moves that read nothing, and
    moves that are free only at the start or at the end of the text (`^` and `$`).
    """

    moves: list[list[tuple[Ranges, int]]] = field(default_factory=list)
    free: list[list[int]] = field(default_factory=list)
    at_start: list[list[int]] = field(default_factory=list)
    at_end: list[list[int]] = field(default_factory=list)
    first: int = 0
    last: int = 0
    known: dict[tuple[frozenset[int], int], frozenset[int]] = field(default_factory=dict)
    """A cache of steps; it is cleared when it has `MAX_STEPS` entries."""
    known_ends: dict[tuple[frozenset[int], bool], bool] = field(default_factory=dict)
    """A cache of `accepts`, likewise."""

    def state(self) -> int:
        if len(self.moves) >= MAX_STATES:
            raise Irregular("the pattern is too large")
        for table in (self.moves, self.free, self.at_start, self.at_end):
            table.append([])
        return len(self.moves) - 1

    def closure(self, states: frozenset[int], start: bool, end: bool) -> frozenset[int]:
        """The states that are reached without reading a character."""
        reached, ahead = set(states), list(states)
        while ahead:
            state = ahead.pop()
            further = list(self.free[state])
            further += self.at_start[state] if start else ()
            further += self.at_end[state] if end else ()
            for target in further:
                if target not in reached:
                    reached.add(target)
                    ahead.append(target)
        return frozenset(reached)

    def step(self, states: frozenset[int], char: int) -> frozenset[int]:
        found = self.known.get((states, char))
        if found is None:
            moved = {
                target
                for state in states
                for ranges, target in self.moves[state]
                if any(low <= char <= high for low, high in ranges)
            }
            found = self.closure(frozenset(moved), False, False)
            if len(self.known) >= MAX_STEPS:
                self.known.clear()
            self.known[states, char] = found
        return found

    def accepts(self, states: frozenset[int], start: bool) -> bool:
        found = self.known_ends.get((states, start))
        if found is None:
            if len(self.known_ends) >= MAX_STEPS:
                self.known_ends.clear()
            found = self.last in self.closure(states, start, True)
            self.known_ends[states, start] = found
        return found


def example(
    matching: Sequence[str],
    missing: Sequence[str] = (),
    *,
    min_length: int = 0,
    max_length: int | None = None,
    unicode: bool = False,
    budget: StepBudget,
) -> str | None:
    """The shortest text that matches all of `matching` and none of `missing`, or None, which
    proves that there is none. Raises Irregular if that cannot be decided."""
    found = examples(
        matching,
        missing,
        min_length=min_length,
        max_length=max_length,
        unicode=unicode,
        budget=budget,
    )
    return next(found, None)


def examples(
    matching: Sequence[str],
    missing: Sequence[str] = (),
    *,
    min_length: int = 0,
    max_length: int | None = None,
    unicode: bool = False,
    budget: StepBudget,
) -> Iterator[str]:
    """Texts as `example` returns them, one for each set of final states, the shortest first."""
    wanted = [_compile(pattern, unicode) for pattern in matching]
    unwanted = [_compile(pattern, unicode) for pattern in missing]
    automata = [*wanted, *unwanted]
    budget.spend(10 + sum(len(automaton.moves) for automaton in automata))
    alphabet = _alphabet((*matching, *missing), unicode)
    begin = tuple(a.closure(frozenset({a.first}), True, False) for a in automata)
    seen = {(begin, 0, True)}
    layer: list[tuple[tuple[frozenset[int], ...], str]] = [(begin, "")]
    length = steps = 0
    # Beyond the bounds on the length, only the states count.
    bound = min_length if max_length is None else max_length
    while layer:
        following: list[tuple[tuple[frozenset[int], ...], str]] = []
        for states, text in layer:
            accepted = [a.accepts(s, length == 0) for a, s in zip(automata, states, strict=True)]
            if (
                length >= min_length
                and all(accepted[: len(wanted)])
                and not any(accepted[len(wanted) :])
            ):
                yield text
            if max_length is not None and length >= max_length:
                continue
            for char in alphabet:
                steps += 1
                budget.spend(len(automata))
                if steps > MAX_STEPS:
                    raise Irregular("the patterns are too large to be compared")
                moved: list[frozenset[int]] = []
                for automaton, state in zip(automata, states, strict=True):
                    after = automaton.step(state, char)
                    if not after and len(moved) < len(wanted):
                        break  # a pattern that must match cannot match any more
                    moved.append(after)
                else:
                    reached = tuple(moved)
                    mark = (reached, min(length + 1, bound), False)
                    if mark not in seen:
                        seen.add(mark)
                        following.append((reached, text + chr(char)))
        layer, length = following, length + 1


@lru_cache(maxsize=512)
def _alphabet(patterns: tuple[str, ...], unicode: bool) -> tuple[int, ...]:
    """One character for each set of characters that no move of these patterns' automata tells
    apart, plain ones first."""
    automata = [_compile(pattern, unicode) for pattern in patterns]
    cuts = {0, 0xD800, 0xE000}
    for automaton in automata:
        for moves in automaton.moves:
            for ranges, _ in moves:
                for low, high in ranges:
                    cuts.update((low, high + 1))
    edges = sorted(cut for cut in cuts if cut <= _LAST)
    chosen: list[int] = []
    signatures = set()
    for low, high in zip(edges, [*edges[1:], _LAST + 1], strict=True):
        if 0xD800 <= low <= 0xDFFF:
            continue  # lone surrogates do not occur in JSON texts
        signature = tuple(
            any(a <= low <= b for a, b in ranges)
            for automaton in automata
            for moves in automaton.moves
            for ranges, _ in moves
        )
        plain = [ord(char) for char in _PLAIN if low <= ord(char) < high]
        if signature in signatures and not plain:
            continue
        signatures.add(signature)
        chosen.append(plain[0] if plain else max(low, min(high - 1, 33)))
    order = {ord(char): place for place, char in enumerate(_PLAIN)}
    return tuple(sorted(chosen, key=lambda char: (order.get(char, len(_PLAIN)), char)))


@lru_cache(maxsize=512)
def _compile(pattern: str, unicode: bool) -> _Automaton:
    if len(pattern) > 1_000:
        raise Irregular("the pattern is too long")
    parser = _Parser(pattern, unicode)
    automaton = parser.automaton
    begin, end = automaton.state(), automaton.state()
    first, last = parser.alternatives(0)
    if parser.place != len(pattern):
        raise Irregular("the pattern is not valid")
    # A pattern is searched for: anything may stand before it and after it.
    automaton.moves[begin].append((_ANY, begin))
    automaton.free[begin].append(first)
    automaton.free[last].append(end)
    automaton.moves[end].append((_ANY, end))
    automaton.first, automaton.last = begin, end
    return automaton


Piece = tuple[int, int]


class _Parser:
    """Reads a pattern by recursive descent, and builds its automaton (Thompson's construction)."""

    def __init__(self, pattern: str, unicode: bool) -> None:
        self.pattern = pattern
        self.unicode = unicode
        self.place = 0
        self.automaton = _Automaton()

    def alternatives(self, depth: int) -> Piece:
        if depth > 50:
            raise Irregular("the pattern is nested too deeply")
        first, last = self.automaton.state(), self.automaton.state()
        while True:
            begin, end = self._sequence(depth)
            self.automaton.free[first].append(begin)
            self.automaton.free[end].append(last)
            if not self._take("|"):
                return first, last

    def _sequence(self, depth: int) -> Piece:
        first = last = self.automaton.state()
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            start = self.place
            piece = self._atom(depth)
            least, most = self._count()
            if (least, most) != (1, 1):
                piece = self._repeat(piece, start, least, most, depth)
            self.automaton.free[last].append(piece[0])
            last = piece[1]
        return first, last

    def _repeat(self, piece: Piece, start: int, least: int, most: int | None, depth: int) -> Piece:
        """The piece again and again; it is read anew for each time that is counted.

        From before each optional piece one free move leads straight to the end. A chain of moves
        from one optional piece to the next would make each step as long as the repetition.
        """
        after = self.place
        free = self.automaton.free
        first = last = self.automaton.state()
        end = self.automaton.state()
        for number in range(max(least, most or 0) or 1):
            if number:
                self.place = start
                piece = self._atom(depth)
            if number >= least:
                free[last].append(end)
            free[last].append(piece[0])
            last = piece[1]
        self.place = after
        if most == 0:
            return (empty := self.automaton.state()), empty
        if most is None:
            free[last].append(piece[0])
        free[last].append(end)
        return first, end

    def _count(self) -> tuple[int, int | None]:
        least: int = 1
        most: int | None = 1
        if self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        elif self._ahead("{"):
            inside, closed, _ = self.pattern[self.place + 1 :].partition("}")
            low, comma, high = inside.partition(",")
            if not (closed and low.isascii() and low.isdigit()) or (high and not high.isdigit()):
                raise Irregular("a brace without a valid count")
            least = int(low)
            most = (int(high) if high else None) if comma else least
            if most is not None and (most < least or most > MAX_STATES):
                raise Irregular("a count that is not valid")
            if least > MAX_STATES:
                raise Irregular("the pattern is too large")
            self.place += len(inside) + 2
        else:
            return 1, 1
        self._take("?")  # lazy or not, the same texts match
        if self.place < len(self.pattern) and self.pattern[self.place] in "*+?{":
            raise Irregular("a repeated repetition")
        return least, most

    def _atom(self, depth: int) -> Piece:
        char = self.pattern[self.place]
        self.place += 1
        if char == "(":
            return self._group(depth)
        if char == "^":
            return self._end(self.automaton.at_start)
        if char == "$":
            return self._end(self.automaton.at_end)
        if char == "[":
            return self._chars(self._class())
        if char == ".":
            return self._chars(_without(((10, 10),) if self.unicode else _LINE_ENDS))
        if char == "\\":
            return self._chars(self._escape(in_class=False))
        if char in "*+?{":
            raise Irregular("nothing to repeat")
        return self._chars(((ord(char), ord(char)),))

    def _group(self, depth: int) -> Piece:
        if self._take("?") and not self._take(":"):
            self._take("P")
            if not self._take("<") or self._ahead("=") or self._ahead("!"):
                raise Irregular("look-around or flags")
            while self.place < len(self.pattern) and not self._take(">"):
                self.place += 1
        piece = self.alternatives(depth + 1)
        if not self._take(")"):
            raise Irregular("a group that is not closed")
        return piece

    def _end(self, table: list[list[int]]) -> Piece:
        first, last = self.automaton.state(), self.automaton.state()
        table[first].append(last)
        return first, last

    def _chars(self, ranges: Ranges) -> Piece:
        first, last = self.automaton.state(), self.automaton.state()
        self.automaton.moves[first].append((ranges, last))
        return first, last

    def _class(self) -> Ranges:
        negated = self._take("^")
        found: list[Range] = []
        while not self._take("]"):
            low = self._member()
            if len(low) == 1 and low[0][0] == low[0][1] and self._range_ahead():
                self.place += 1
                high = self._member()
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise Irregular("a range that is not valid")
                low = ((low[0][0], high[0][0]),)
            found.extend(low)
        ranges = tuple(sorted(found))
        return _without(ranges) if negated else ranges

    def _range_ahead(self) -> bool:
        return self._ahead("-") and not self.pattern.startswith("-]", self.place)

    def _member(self) -> Ranges:
        if self.place >= len(self.pattern):
            raise Irregular("a character class that is not closed")
        char = self.pattern[self.place]
        self.place += 1
        if char == "\\":
            return self._escape(in_class=True)
        if char == "[" or (char in "&-~" and self._ahead(char)):
            raise Irregular("a character class that engines read differently")
        return ((ord(char), ord(char)),)

    def _escape(self, *, in_class: bool) -> Ranges:
        if self.place >= len(self.pattern):
            raise Irregular("an escape of nothing")
        char = self.pattern[self.place]
        self.place += 1
        classes = {
            "d": _DIGITS + (_MORE_DIGITS if self.unicode else ()),
            "w": _WORD + (_MORE_WORD if self.unicode else ()),
            "s": _SPACE,
        }
        if char.lower() in classes:
            ranges = classes[char.lower()]
            return ranges if char.islower() else _without(tuple(sorted(ranges)))
        simple = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
        if in_class and char == "b":
            return ((8, 8),)
        if char in simple:
            return ((simple[char], simple[char]),)
        if char in "xu":
            return self._coded(2 if char == "x" else 4)
        if char.isalnum():
            raise Irregular("an escape that is not a regular language")
        return ((ord(char), ord(char)),)

    def _coded(self, digits: int) -> Ranges:
        text = self.pattern[self.place : self.place + digits]
        if len(text) < digits or any(char not in "0123456789abcdefABCDEF" for char in text):
            raise Irregular("an escape that engines read differently")
        self.place += digits
        return ((int(text, 16), int(text, 16)),)

    def _take(self, char: str) -> bool:
        if not self._ahead(char):
            return False
        self.place += 1
        return True

    def _ahead(self, char: str) -> bool:
        return self.pattern.startswith(char, self.place)


def _without(ranges: Ranges) -> Ranges:
    """All other characters."""
    kept: list[Range] = []
    begin = 0
    for low, high in sorted(ranges):
        if low > begin:
            kept.append((begin, low - 1))
        begin = max(begin, high + 1)
    if begin <= _LAST:
        kept.append((begin, _LAST))
    return tuple(kept)
