"""The running systems that tests share: pytest-xdist gives each one's tests to one process, so each starts once."""

import pytest

ONE = pytest.param(1, id="one-worker", marks=pytest.mark.xdist_group("one-worker"))
TWO = pytest.param(2, id="two-workers", marks=pytest.mark.xdist_group("two-workers"))
EMPTY = pytest.mark.xdist_group("empty-stack")
"""Of modules that use `empty_stack`."""
GPU_HOST = pytest.mark.xdist_group("gpu-host")
"""Of modules that use `gpu_host`."""
ORIGIN, ROOT_PATH = "https://app.example", "/cortex"
"""Whose web pages may use `empty_stack`, and the path that its proxy may have."""
