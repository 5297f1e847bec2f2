"""What is given up, seen from a child of a real process; and directories nobody else can look into."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cortex.platform.settings import SettingsError
from cortex.platform.workers.hardening import temporary
from cortex.platform.workers.worker_user import worker_user

SHOW = """
import json, resource, subprocess, sys
from cortex.platform.workers.hardening import confine
confine(no_new_privs=json.loads(sys.argv[1]))
said = subprocess.run(["grep", "NoNewPrivs", "/proc/self/status"], capture_output=True, text=True).stdout.split()[1]
core = subprocess.run(["/bin/sh", "-c", "ulimit -c"], capture_output=True, text=True).stdout.strip()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(json.dumps([said, core, soft == hard]))
"""


@pytest.mark.parametrize(("asked", "expected"), [("true", "1"), ("false", "0")])
def test_a_child_can_gain_nothing_and_leaves_no_core(asked: str, expected: str) -> None:
    said = subprocess.run([sys.executable, "-c", SHOW, asked], capture_output=True, text=True, check=True).stdout

    assert json.loads(said) == [expected, "0", True]


def test_a_workers_directory_is_its_own_and_may_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    first, second = temporary("one"), temporary("one")

    assert first == second
    assert first.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_somebody_prepared_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "open").mkdir()
    (tmp_path / "cortex-linked").symlink_to(tmp_path / "open")
    (tmp_path / "cortex-readable").mkdir(mode=0o755)

    for instance in ("linked", "readable"):
        with pytest.raises(OSError, match="somebody else"):
            temporary(instance)


@pytest.mark.skipif(os.geteuid() != 0, reason="an agent that is not root is told so")
@pytest.mark.parametrize(("name", "why"), [("no-such-user", "has no user 'no-such-user'"), ("root", "is root")])
def test_a_user_for_workers_that_is_none_stops_the_agent(name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        worker_user(name)


def test_an_agent_that_is_not_root_cannot_give_its_workers_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(SettingsError, match="an agent that is root"):
        worker_user("nobody")
    assert worker_user("") is None
