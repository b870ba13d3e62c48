"""Where the demo is forked from."""

from __future__ import annotations

from tests.integration.conftest import forks

__all__ = ["forks"]
