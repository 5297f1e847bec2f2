"""The two running systems that tests share: pytest-xdist gives each one's tests to one process, so each starts once."""

import pytest

ONE = pytest.param(1, id="one-worker", marks=pytest.mark.xdist_group("one-worker"))
TWO = pytest.param(2, id="two-workers", marks=pytest.mark.xdist_group("two-workers"))
