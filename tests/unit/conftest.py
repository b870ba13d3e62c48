"""Hypothesis for all unit tests: no deadline, because machines that run tests are busy ones; the
same examples each time, so that what fails fails for everybody."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "unit",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")
