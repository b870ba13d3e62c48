"""The Hypothesis profile of all unit tests.

There is no deadline, because machines that run tests are busy. The examples are the same each time,
so that a failure can be reproduced by everybody.
"""

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
