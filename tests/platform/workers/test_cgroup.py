"""A control group contains processes that escaped everything else."""

import secrets
import sys
from pathlib import Path

import psutil
import pytest

from cortex.platform.workers import cgroup, process
from tests.support.stack import eventually

INSTANCE = secrets.token_hex(8)  # of this run: tests in parallel find and kill processes by this mark too
ESCAPE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
    os._exit(0)
time.sleep(600)
"""


def test_a_process_that_left_group_session_and_environment_is_killed(tmp_path: Path) -> None:
    groups = cgroup.home("test")
    if groups is None:
        pytest.skip("this host has no cgroup v2 that may be written")
    argv = cgroup.wrap_command(groups, INSTANCE, [sys.executable, "-c", ESCAPE])
    child = process.spawn(argv, {}, tmp_path / "log", INSTANCE)
    try:
        pids = eventually(lambda: members_if(groups, 2), what="the one that got away")

        process.kill_orphans(INSTANCE)
        escaped = [p for p in pids if psutil.pid_exists(p) and p != child.pid]
        cgroup.kill(groups, INSTANCE)

        assert escaped
        assert not [p for p in escaped if running(p)]
        assert not (groups / INSTANCE).exists()
    finally:
        cgroup.kill(groups, INSTANCE)
        child.kill()
        child.wait()
        cgroup.remove_home(groups)


def members_if(groups: Path, count: int) -> list[int]:
    result = cgroup.members(groups, INSTANCE)
    return result if len(result) >= count else []


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_host_without_cgroup_v2_has_no_home_and_all_calls_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("cgroup /sys/fs/cgroup cgroup rw 0 0\n")
    (tmp_path / "own").write_text("1:cpu:/\n")

    groups = cgroup.home("x", mounts=tmp_path / "mounts", own=tmp_path / "own")
    argv = cgroup.wrap_command(groups, "one", ["true"])
    cgroup.kill(groups, "one")

    assert groups is None
    assert argv == ["true"]
    assert cgroup.members(groups, "one") == []


MIB = 1 << 20


def limited(tmp_path: Path, groups: dict[str, tuple[str, int, int]]) -> int | None:
    """Return what is free in the group `a/b`; `groups` have their limit, their use, and file caches of that, in MiB."""
    (tmp_path / "mounts").write_text(f"cgroup2 {tmp_path}/fs cgroup2 rw 0 0\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    for name, (limit, used_mb, cached_mb) in groups.items():
        folder = tmp_path / "fs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used_mb * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached_mb * MIB}\n")
    return cgroup.free_mb(mounts=tmp_path / "mounts", own=tmp_path / "own")


@pytest.mark.parametrize(
    ("groups", "free_mb"),
    [
        ({"a/b": (str(4096 * MIB), 1000, 0)}, 3096),
        ({"a/b": (str(4096 * MIB), 4000, 500)}, 596),
        ({"a/b": ("max", 1000, 0)}, None),
        ({"a/b": ("max", 1000, 0), "a": (str(2048 * MIB), 1500, 0)}, 548),
        ({"a/b": (str(4096 * MIB), 1000, 0), "a": (str(2048 * MIB), 1000, 0)}, 1048),
        ({"a/b": (str(1000 * MIB), 1100, 0)}, 0),
        ({}, None),
    ],
)
def test_the_memory_that_limits_leave_is_the_least_of_all_groups(
    tmp_path: Path, groups: dict[str, tuple[str, int, int]], free_mb: int | None
) -> None:
    assert limited(tmp_path, groups) == free_mb


def test_a_host_without_cgroup_v2_has_no_limit(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("cgroup /sys/fs/cgroup cgroup rw 0 0\n")

    assert cgroup.free_mb(mounts=tmp_path / "mounts", own=tmp_path / "own") is None
