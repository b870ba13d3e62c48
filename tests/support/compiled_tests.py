"""Compiles the tests once, before several processes of pytest-xdist import all of them.

pytest rewrites every `assert` when it imports a module of tests, which is most of the time that
collecting takes. It keeps the result in `__pycache__`; but the processes of pytest-xdist start at
the same time, none of them finds anything there, and each rewrites everything. So the controlling
process does it before it starts them, on all processors. A module that is already there is not
rewritten again.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

_TESTS = Path(__file__).parents[1]


def compile_tests(config: pytest.Config) -> None:
    """Put what pytest makes of each module of tests into `__pycache__`."""
    import hypothesis.stateful  # noqa: F401  # pytest rewrites this package too, and keeps it

    paths = [path for name in ("test_*.py", "conftest.py") for path in _TESTS.rglob(name)]
    stale = [path for path in paths if rewrite._read_pyc(path, _kept(path)) is None]
    share = os.cpu_count() or 1
    fork = multiprocessing.get_context("fork")  # a child has `config`, which cannot be sent
    children = [
        fork.Process(target=_rewrite, args=(config, part))
        for start in range(share)
        if (part := stale[start::share])
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()


def _rewrite(config: pytest.Config, paths: Sequence[Path]) -> None:
    for path in paths:
        kept = _kept(path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        source_hash, code = rewrite._rewrite_test(path, config)
        rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, source_hash, kept)


def _kept(path: Path) -> Path:
    return rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL)
