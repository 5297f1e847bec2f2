"""Restrictions as seen from a child of a real process; and private directories of workers."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cortex.platform.settings import SettingsError
from cortex.platform.workers.hardening import temporary
from cortex.platform.workers.worker_user import find_user

SHOW = """
import json, resource, subprocess, sys
from cortex.platform.workers.hardening import harden_process
harden_process(no_new_privs=json.loads(sys.argv[1]))
flag = subprocess.run(["grep", "NoNewPrivs", "/proc/self/status"], capture_output=True, text=True).stdout.split()[1]
core = subprocess.run(["/bin/sh", "-c", "ulimit -c"], capture_output=True, text=True).stdout.strip()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(json.dumps([flag, core, soft == hard]))
"""


@pytest.mark.parametrize(("setting", "expected"), [("true", "1"), ("false", "0")])
def test_a_child_cannot_gain_privileges_or_dump_core(setting: str, expected: str) -> None:
    output = subprocess.run([sys.executable, "-c", SHOW, setting], capture_output=True, text=True, check=True).stdout

    assert json.loads(output) == [expected, "0", True]


def test_a_workers_directory_is_private_and_reusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    first, second = temporary("one"), temporary("one")

    assert first == second
    assert first.stat().st_mode & 0o777 == 0o700


def test_a_directory_prepared_by_another_user_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "open").mkdir()
    (tmp_path / "cortex-linked").symlink_to(tmp_path / "open")
    (tmp_path / "cortex-readable").mkdir(mode=0o755)

    for instance in ("linked", "readable"):
        with pytest.raises(OSError, match="another user"):
            temporary(instance)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("name", "why"), [("no-such-user", "no user 'no-such-user'"), ("root", "must not be root")])
def test_an_invalid_worker_user_is_a_settings_error(name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        find_user(name)


def test_a_worker_user_requires_an_agent_that_runs_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(SettingsError, match="must run as root"):
        find_user("nobody")
    assert find_user("") is None
