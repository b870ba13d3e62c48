"""The tables in docs/ agree with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from eventmesh.duration import seconds
from eventmesh.runtime.declaring.settings import Settings, load_settings
from eventmesh.tracing import conventions

ROOT = Path(__file__).parents[2]
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")

FOR_DEVELOPERS = {"test", "bench", "check"}
"""Extras that only a checkout of EventMesh needs."""


def rows(title: str) -> dict[str, str]:
    """The first two columns of the table below this heading, without the backquotes."""
    section = SETTINGS_PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.MULTILINE)
    return {name: second.strip().strip("`") for name, second in found}


def test_the_table_of_settings_lists_every_setting_with_its_default() -> None:
    table = rows("All variables")
    assert table.pop("EVENTMESH_<SERVICE>_DATABASE_URL") == "sqlite:///.eventmesh/<service>.db"
    assert set(table) == {f"EVENTMESH_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown, default = (
            table[f"EVENTMESH_{name.upper()}"],
            field.get_default(call_default_factory=True),
        )
        if isinstance(default, float):
            assert seconds(shown) == default, name
        else:
            assert shown == ("not set" if default is None else str(default)), name


def test_the_defaults_in_the_table_are_valid_values(tmp_path: Path) -> None:
    shown = {name: value for name, value in rows("All variables").items() if "<" not in name}
    env_file = tmp_path / ".env"
    env_file.write_text(
        "".join(f"{name}={value}\n" for name, value in shown.items() if value != "not set")
    )
    loaded = load_settings(env_file)
    assert loaded.model_dump() == Settings().model_dump()


def test_the_table_of_extras_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(rows("Extras")) == set(project["optional-dependencies"]) - FOR_DEVELOPERS


def test_the_table_of_our_own_attributes_lists_every_one() -> None:
    page = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(eventmesh\.[^`]+)` \|", page, re.MULTILINE)
    constants = [value for name, value in vars(conventions).items() if name.isupper()]
    ours = [value for value in constants if str(value).startswith("eventmesh.")]
    assert sorted(listed) == sorted(ours)
