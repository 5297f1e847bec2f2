"""Limits processes to a share of a CPU each, by control groups: what one worker can do, when load and upstream share
its machine. Needs root and a `cpu` controller, of either version."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000


@contextlib.contextmanager
def limited(pids: Sequence[int], share: float) -> Iterator[None]:
    """Give each process its own group with a share of one CPU. Raises OSError where that cannot be done."""
    groups: list[Path] = []
    try:
        for pid in pids:
            group = _root() / f"cortex-bench-{pid}"
            group.mkdir()
            groups.append(group)
            quota = int(share * PERIOD_US)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for pid, group in zip(pids, groups, strict=False):
            with contextlib.suppress(OSError):  # the process has ended
                (group.parent / "cgroup.procs").write_text(str(pid))
            with contextlib.suppress(OSError):
                group.rmdir()


def _root() -> Path:
    """Return the group in which groups are made. Raises OSError."""
    if (ROOT / "cpu" / "cpu.shares").exists() or (ROOT / "cpu" / "cpu.cfs_quota_us").exists():
        return ROOT / "cpu"
    if "cpu" in (ROOT / "cgroup.controllers").read_text().split():
        (ROOT / "cgroup.subtree_control").write_text("+cpu")
        return ROOT
    raise OSError(f"{os.fspath(ROOT)} has no cpu controller")
