"""The same pair has the same verdict and the same witness on any machine and under any load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def verdicts_of_a_process(state: str, hash_seed: str) -> list[str]:
    done = subprocess.run(  # noqa: S603  # our own module
        [sys.executable, "-m", "tests.compat.verdict_process", state],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode().splitlines()


def test_a_starved_process_gives_the_same_verdicts_and_witnesses() -> None:
    plain = verdicts_of_a_process("plain", "1")
    starved = verdicts_of_a_process("starved", "2")
    assert len(plain) > 40
    assert starved == plain
