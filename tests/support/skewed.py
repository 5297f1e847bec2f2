"""Processes with a wrong clock, a failing disk or a hung mount, simulated inside them by a `sitecustomize`.

A test gives `env(folder)` to a process and then writes a file: `step(folder, seconds)` sets its wall clock apart from
the machine's, as NTP or an administrator would, and with it the boot time that the kernel reckons from it.
"""

from pathlib import Path

SITE = """
import os, time
_real, _path = time.time, os.environ["TEST_CLOCK"]
def _offset():
    try:
        return float(open(_path).read() or 0)
    except (OSError, ValueError):
        return 0.0
time.time = lambda: _real() + _offset()
import psutil._pslinux as _linux
_boot = _linux.boot_time
_linux.boot_time = lambda: _boot() + round(_offset())
"""


def env(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose clock `step` sets."""
    site = folder / "site"
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    return {"PYTHONPATH": str(site), "TEST_CLOCK": str(folder / "clock")}


def step(folder: Path, seconds: float) -> None:
    """Set the wall clock of those processes apart from the machine's."""
    (folder / "clock").write_text(str(seconds))
