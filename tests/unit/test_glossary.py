"""Words that docs/glossary.md avoids do not come back.

They are searched in what users see (errors, log events, help), and in the names, docstrings and
comments of tests.
"""

from __future__ import annotations

import ast
import gc
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from eventmesh.cli.main import app

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eventmesh"

MODULES = sorted(
    path
    for pattern in (
        *("*.py", "cli/**/*.py", "contracts/**/*.py", "dashboard/**/*.py"),
        *("observability/*.py", "review/**/*.py"),
        *("operations/**/*.py", "saga/*.py", "testing/**/*.py", "transports/**/*.py"),
    )
    for path in PACKAGE.glob(pattern)
)
"""Those whose errors and log events follow the glossary by now."""

TESTS = sorted(
    path
    for pattern in (
        *("schemas/*.py", "unit/*.py", "unit/contracts/*.py", "unit/dashboard/*.py"),
        *("unit/demo/*.py",),
        *("unit/operations/*.py", "unit/persistence/*.py", "unit/review/*.py", "unit/runtime/*.py"),
        *("unit/testing/*.py", "unit/transports/**/*.py", "unit/wire/*.py"),
    )
    for path in (ROOT / "tests").glob(pattern)
    if path != Path(__file__)
)
"""Those whose names, docstrings and comments follow the glossary by now."""

AVOIDED = re.compile(
    r"(?:\b(?:what|this|that|it|which)|^|\W) is no (?!longer\b)"
    r"|\bfor good\b|\bgives? up\b|\bgiven up\b|\bfor ever\b|\b(?:is|are) told\b|"
    r"\bpassed over\b|\bhorizon\b|\btenure\b|\bdoorbell\b|\bstands? in the way\b|\banew\b"
)
"""The second column of the table "Words that are not used", as far as a pattern can tell."""

AVOIDED_IN_NAMES = re.compile(rf"{AVOIDED.pattern}|(?<!there) (?:is|are) no (?!longer\b|more\b)")
"""A name has no punctuation, so that `is no` is easier to recognise in it."""

PUBLIC_NAMES = re.compile("give_up_on")
"""Names of the API with avoided words."""

LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Python 3.11 raises SystemError if objects that other tests have left are collected while
    `ast` builds a tree (python/cpython#106905)."""
    gc.disable()
    yield
    gc.enable()


def texts_of(node: ast.AST) -> Iterator[str]:
    """The constant parts of a string, also of an f-string."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def visible_texts(path: Path) -> Iterator[str]:
    """The texts of errors and log events in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from texts_of(node.exc)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOG_METHODS
            and node.args
        ):
            yield from texts_of(node.args[0])


def texts_of_test(path: Path) -> Iterator[str]:
    """The docstrings and comments of a module of tests."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield " ".join((ast.get_docstring(node) or "").split())
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.string


def names_in_test(path: Path) -> Iterator[str]:
    """The functions and classes of a module of tests, as words."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield PUBLIC_NAMES.sub("", node.name).replace("_", " ")


def help_texts(command: Any) -> Iterator[str]:
    yield command.help or ""
    for parameter in command.params:
        yield getattr(parameter, "help", None) or ""
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_errors_and_log_events_use_the_words_of_the_glossary(path: Path) -> None:
    assert [text for text in visible_texts(path) if AVOIDED.search(text)] == []


def test_help_uses_the_words_of_the_glossary() -> None:
    texts = help_texts(typer.main.get_command(app))
    assert [text for text in texts if AVOIDED.search(text)] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_tests_use_the_words_of_the_glossary(path: Path) -> None:
    assert [text for text in texts_of_test(path) if AVOIDED.search(text)] == []
    assert [name for name in names_in_test(path) if AVOIDED_IN_NAMES.search(name)] == []


@pytest.mark.parametrize("name", ["test a key is no field", "test values that are no text"])
def test_avoided_words_are_found_in_names(name: str) -> None:
    assert AVOIDED_IN_NAMES.search(name)


@pytest.mark.parametrize("text", ["it is no queue", "deleted for good", "the code starts anew"])
def test_avoided_words_are_found(text: str) -> None:
    assert AVOIDED.search(text)
