"""How long a verdict takes: `python -m benchmarks.schemas [PAIRS.json]`.

Ours is `compare`, which answers with a proof or a witness. Beside it stand the parts that it is
made of: `covers` of `jsonschema_rs` alone, which proves and shows nothing, and knows no formats as
pydantic has them; and a validation of one document, the least that any answer costs. The pairs are
those of the tests, or of a file of the same shape.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jsonschema_rs
from jsonschema_rs import canonical

from eventmesh.compat import compare

PAIRS = Path(__file__).parents[1] / "tests" / "compat" / "schema-pairs.json"
ROUNDS = 5
"""Times that each pair is asked about; the fastest counts."""

DRAFTS = {
    "4": jsonschema_rs.Draft4,
    "7": jsonschema_rs.Draft7,
    "2020": jsonschema_rs.Draft202012,
}

Pair = dict[str, Any]
Ask = Callable[[Pair], str]


def ours(pair: Pair) -> str:
    return type(compare(pair["writer"], pair["reader"], draft=pair["draft"])).__name__


def covers_alone(pair: Pair) -> str:
    """What the library says by itself; it declines what it cannot canonicalize."""
    try:
        writer, reader = (
            jsonschema_rs.canonicalize(pair[side], draft=DRAFTS[pair["draft"]], offline=True)
            for side in ("writer", "reader")
        )
        return str(reader.covers(writer)).rpartition(".")[2]
    except (canonical.CanonicalizationError, jsonschema_rs.ValidationError, ValueError):
        return "declined"


def one_validation(pair: Pair) -> str:
    try:
        made = jsonschema_rs.validator_for(pair["writer"], offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return "declined"
    return str(made.is_valid({}))


CONTENDERS: dict[str, Ask] = {
    "compare (ours)": ours,
    "covers alone (jsonschema_rs)": covers_alone,
    "compile and validate {} (jsonschema_rs)": one_validation,
}


def fastest(ask: Ask, pair: Pair) -> tuple[float, str]:
    seconds, answer = [], ""
    for _ in range(ROUNDS):
        begun = perf_counter()
        answer = ask(pair)
        seconds.append(perf_counter() - begun)
    return min(seconds), answer


def first_time(pairs: Sequence[Pair]) -> float:
    """Seconds for the first question of a process, which imports what is needed."""
    begun = perf_counter()
    ours(pairs[0])
    return perf_counter() - begun


def main(arguments: Sequence[str]) -> None:
    path = Path(arguments[0]) if arguments else PAIRS
    pairs: list[Pair] = json.loads(path.read_text())
    print(f"{len(pairs)} pairs of {path.name}, milliseconds a pair, the best of {ROUNDS}\n")
    cold = first_time(pairs)
    print("| what | median | 99 of 100 | slowest | all | times `covers` | answers |")
    print("|---|---|---|---|---|---|---|")
    figures = {name: [fastest(ask, p) for p in pairs] for name, ask in CONTENDERS.items()}
    base = median(seconds for seconds, _ in figures["covers alone (jsonschema_rs)"])
    for name, measured in figures.items():
        times = sorted(seconds * 1000 for seconds, _ in measured)
        answers = Counter(answer for _, answer in measured)
        said = ", ".join(f"{answer} {count}" for answer, count in answers.most_common())
        print(
            f"| {name} | {median(times):.2f} | {times[int(len(times) * 0.99)]:.1f} "
            f"| {times[-1]:.1f} | {sum(times):.0f} | {median(times) / 1000 / base:.1f} | {said} |"
        )
    print(f"\nThe first question of a process took {cold * 1000:.0f} ms.")
    slowest = sorted(zip(figures["compare (ours)"], pairs, strict=True), key=lambda f: -f[0][0])
    print("Slowest: " + "; ".join(f"{p['id']} {s * 1000:.0f} ms" for (s, _), p in slowest[:3]))


if __name__ == "__main__":
    main(sys.argv[1:])
