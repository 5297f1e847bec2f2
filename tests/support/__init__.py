"""Shared helpers of tests. Importing this makes property tests repeatable: the same examples on every run.

`CORTEX_TEST_EXAMPLES` sets how many examples a property is tried with.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=int(os.environ.get("CORTEX_TEST_EXAMPLES", "30")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
