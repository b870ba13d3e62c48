"""Generating a test with the document that an upcaster must be able to convert."""

from __future__ import annotations

import json
from typing import Any

_TEST = '''\
"""{title}

Written by `eventmesh schema check --fix`, with a document that the new version could not read. It
passes once the upcaster converts that document.
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


def test_version_{version}_of_{message}_can_be_read() -> None:
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


def test_a_document_that_version_{version}_cannot_read_has_a_later_version() -> None:
    [service] = load_services([{service}], ROOT)
    model = service.registry.get({name})
    assert model is not None
    assert model.__identity__.version > {version}
    model.model_validate_json(to_json(NEW))
'''


def file_name(name: str, version: int) -> str:
    return f"test_{name.replace('.', '_')}_v{version}.py"


def file_text(name: str, version: int, *, service: str, document: Any, new: Any) -> str:
    """The text of the test; `document` is of the old version, and `new`, if it is not None, a
    document of the new version that readers of the old one reject."""
    values = {
        "title": f"Messages of {name} v{version} can still be read.",
        "message": name.rpartition(".")[2],
        "name": json.dumps(name),
        "service": json.dumps(service),
        "version": version,
    }
    text = _TEST.format(document=_json(document), **values)
    return text if new is None else text + _NEW.format(document=_json(new), **values)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2)
