from __future__ import annotations

from eventmesh.runtime.seen_errors import SeenErrors


def raised(kind: type[Exception], text: str) -> Exception:
    try:
        raise kind(text)
    except kind as error:
        return error


def raised_elsewhere(kind: type[Exception], text: str) -> Exception:
    try:
        raise kind(text)
    except kind as error:
        return error


def test_errors_of_the_same_type_from_the_same_line_are_new_once() -> None:
    seen = SeenErrors()
    assert seen.is_new(raised(ValueError, "of one message"))
    assert not seen.is_new(raised(ValueError, "of another message"))
    assert seen.is_new(raised(KeyError, "of another type"))
    assert seen.is_new(raised_elsewhere(ValueError, "from another line"))
    assert not seen.is_new(raised_elsewhere(ValueError, "from another line"))


def test_errors_without_a_traceback_are_distinguished_by_type() -> None:
    seen = SeenErrors()
    assert seen.is_new(ValueError())
    assert not seen.is_new(ValueError())
    assert seen.is_new(KeyError())


def test_only_the_last_hundred_errors_are_remembered() -> None:
    kinds = [type(f"Error{number}", (Exception,), {}) for number in range(101)]
    seen = SeenErrors()
    for kind in kinds[:100]:
        assert seen.is_new(kind())
    assert not seen.is_new(kinds[0]())  # now the most recent
    assert seen.is_new(kinds[100]())
    assert not seen.is_new(kinds[0]())
    assert seen.is_new(kinds[1]())
