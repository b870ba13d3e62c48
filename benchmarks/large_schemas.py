"""Verdicts on large schemas: `python -m benchmarks.large_schemas [ROUNDS] [--list]`.

Prints how many verdicts are the true ones, the share of Unknown, and the time a verdict takes;
with `--list` also each pair that is Unknown, wrong or slow.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from statistics import median
from time import perf_counter, process_time

from eventmesh.compat import Unknown, compare
from tests.compat.large_schemas import pairs

SLOW = 500.0
"""Milliseconds from which a pair is listed as slow."""


def main(arguments: Sequence[str]) -> None:
    rounds = next((int(word) for word in arguments if word.isdigit()), 4)
    compare({"type": "string"}, {"type": "string", "format": "date"})  # imports what is needed
    answers: Counter[str] = Counter()
    times, wrong, known = [], 0, 0
    for pair in pairs(rounds):
        wall, begun = perf_counter(), process_time()
        verdict = compare(pair.writer, pair.reader, draft=pair.draft)
        milliseconds = (process_time() - begun) * 1000
        wall = (perf_counter() - wall) * 1000
        answer = type(verdict).__name__
        answers[answer] += 1
        times.append(milliseconds)
        is_known = pair.truth is not None and not isinstance(verdict, Unknown)
        known += is_known
        is_wrong = is_known and answer.lower() != pair.truth
        wrong += is_wrong
        if "--list" in arguments and (
            is_wrong or isinstance(verdict, Unknown) or milliseconds > SLOW
        ):
            print(f"{pair.name}: {pair.change}: {answer} ({pair.truth}) {milliseconds:.0f} ms")
    times.sort()
    total = len(times)
    print("| pairs | as expected | unlike expected | Unknown | median | 95 of 100 | worst |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {total} | {known - wrong} | {wrong} | {answers['Unknown'] / total:.1%} "
        f"| {median(times):.0f} ms | {times[int(total * 0.95)]:.0f} ms | {times[-1]:.0f} ms |"
    )
    print(", ".join(f"{answer} {count}" for answer, count in answers.most_common()))


if __name__ == "__main__":
    main(sys.argv[1:])
