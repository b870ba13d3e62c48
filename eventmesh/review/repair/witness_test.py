"""A test that holds the document for which an upcaster is needed."""

from __future__ import annotations

import json
from typing import Any

_TEST = '''\
"""{title}

Written by `eventmesh schema check --fix`, with a document that broke. It passes once the upcaster
says what such a document means today.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic_core import to_json

from eventmesh.contracts.versions import upcast
from eventmesh.runtime.declaring.discovery import load_services

ROOT = Path(__file__).resolve().parents[2]

DOCUMENT = json.loads(
    r"""
{document}
"""
)


def test_version_{version}_of_{message}_is_still_read() -> None:
    [service] = load_services([{service}], ROOT)
    model = service.registry.get({name})
    assert model is not None
    data = upcast(model, DOCUMENT, {version})
    model.model_validate_json(to_json(data))
'''

_NEW = '''

NEW = json.loads(
    r"""
{document}
"""
)


def test_what_a_reader_of_version_{version}_refuses_is_of_a_later_version() -> None:
    [service] = load_services([{service}], ROOT)
    model = service.registry.get({name})
    assert model is not None
    assert model.__identity__.version > {version}
    model.model_validate_json(to_json(NEW))
'''


def file_name(name: str, version: int) -> str:
    """The file's name."""
    return f"test_{name.replace('.', '_')}_v{version}.py"


def file_text(name: str, version: int, *, service: str, document: Any, new: Any) -> str:
    """The file's text: `document` is of the old version, `new` what a reader of it refuses."""
    said = {
        "title": f"{name} v{version} is still read.",
        "message": name.rpartition(".")[2],
        "name": json.dumps(name),
        "service": json.dumps(service),
        "version": version,
    }
    text = _TEST.format(document=_json(document), **said)
    return text if new is None else text + _NEW.format(document=_json(new), **said)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2)
