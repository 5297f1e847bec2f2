"""`just deploy` and its siblings: what they pass to Ansible, and how they are interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deploy import run

from tests.support.stack import eventually

ANSIBLE = f"""#!{sys.executable}
import pathlib, signal, sys
try:
    pathlib.Path("begun").touch()
    signal.pause()
except KeyboardInterrupt:
    signal.setitimer(signal.ITIMER_REAL, 0.5)  # longer than subprocess.run waits for it
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.pause()
    pathlib.Path("ended").touch()
    sys.exit(99)
"""
PROGRAM = 'from deploy.run import play; print(play("hosts.yml", "site.yml"))'


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_ansible_ends_in_its_own_time(number: signal.Signals, group: bool, tmp_path: Path) -> None:
    program = tmp_path / "ansible-playbook"
    program.write_text(ANSIBLE)
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(run.ROOT), "HOME": str(tmp_path)}

    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as deploying:  # fmt: skip
        eventually(lambda: (tmp_path / "begun").exists())
        (os.killpg if group else os.kill)(deploying.pid, number)
        out, err = deploying.communicate(timeout=20)

    assert (tmp_path / "ended").exists()
    assert out == "99\n"
    assert "run the same command again to continue" in err and "Traceback" not in err


@pytest.mark.parametrize("argument", ["--limit=beast", "-l", "--tags", "--check"])
def test_a_token_is_replaced_on_all_machines_or_none(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.rotate_token("hosts.yml", [argument, "beast"]) == 2

    assert "rotate-token is for all machines at a time" in capsys.readouterr().err
