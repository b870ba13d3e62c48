"""The Typer application of every command group, with help in plain text.

Typer's own help draws boxes and shows the Python type of each flag and argument (`<bool>`,
`<list[str]>`), which tells a user of the command line nothing. Here a value is named by its
metavar (`--limit N`), and a flag has none. A list of commands has the whole first sentence of each,
where Typer cuts it off at the end of the line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

_SENTENCE = 1_000  # characters: longer than any first sentence
Function = TypeVar("Function", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command whose help lists arguments by name, without their types."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments, options = [], []
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is None:
                continue
            if isinstance(parameter, TyperArgument):
                name, text = row
                shown_type = parameter.display_type_rich(ctx)
                arguments.append((name.removesuffix(f" {shown_type}"), text))
            else:
                options.append(row)
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def get_short_help_str(self, limit: int = 45) -> str:
        return super().get_short_help_str(max(limit, _SENTENCE))


class Group(TyperGroup):
    """A group of commands in the list of another one."""

    def get_short_help_str(self, limit: int = 45) -> str:
        return super().get_short_help_str(max(limit, _SENTENCE))


class App(typer.Typer):
    """A group of commands; `help` is its one line in the list of groups."""

    def __init__(self, *, help: str | None = None) -> None:  # noqa: A002  # Typer's name for it
        super().__init__(
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            cls=Group,
            help=help,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        return super().command(name, cls=Command, **options)


def utf8(value: Any) -> Any:
    """Reject text that no database can store or compare: a shell may pass bytes that are not
    UTF-8."""
    for text in [value] if isinstance(value, str) else value or ():
        if not text.isascii() and text.encode(errors="ignore").decode() != text:
            raise typer.BadParameter(f"{text!r} is not UTF-8")
    return value
