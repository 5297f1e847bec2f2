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
