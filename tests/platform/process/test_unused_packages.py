"""Packages that a library does without."""

import subprocess
import sys

import pytest

from cortex.platform.process import unused_packages

LOG = """
import sys
from cortex.platform import log
print("structlog" in sys.modules, "rich" in sys.modules)
import rich
"""


@pytest.mark.parametrize("name", ["colorsys", "json"])
def test_a_package_is_missing_meanwhile_and_there_afterwards(name: str) -> None:
    before = sys.modules.get(name)

    with unused_packages.without(name), pytest.raises(ModuleNotFoundError):
        __import__(name)

    assert sys.modules.get(name) is before
    assert __import__(name).__name__ == name


def test_a_package_that_was_left_out_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "colorsys", None)

    with unused_packages.without("colorsys"):
        pass

    assert sys.modules["colorsys"] is None


def test_logging_imports_no_rich_and_leaves_it_to_others() -> None:
    run = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True, timeout=60, check=True)

    assert run.stdout == "True False\n"
