"""A worker has its own user, cannot gain privileges, and has a temporary directory that is removed with it."""

import json
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.e2e.security.hardened import PLAIN, Hardened
from tests.support.stack import eventually

pytestmark = [pytest.mark.xdist_group("security"), pytest.mark.long]

ACCOUNT = pwd.getpwnam("nobody")


def nobody_may_read(path: Path) -> bool:
    """Whether the checkout lies where other users of this machine can look."""
    return not subprocess.run(
        [
            "setpriv",
            f"--reuid={ACCOUNT.pw_uid}",
            f"--regid={ACCOUNT.pw_gid}",
            "--clear-groups",
            "test",
            "-r",
            str(path),
        ],
        check=False,
    ).returncode


@pytest.mark.skipif(
    os.geteuid() != 0 or not nobody_may_read(PLAIN), reason="needs root, and a checkout others can read"
)
def test_a_worker_user_cannot_read_the_agents_files(hardened: Hardened) -> None:
    hardened.join("b", CORTEX_AGENT__WORKER_USER="nobody", CORTEX_AGENT__LABELS='["own-user"]')

    answer = hardened.chat("own/user")
    (instance,) = hardened.function("own/user")["instances"]
    report = json.loads(answer.json()["choices"][0]["message"]["content"])
    log = Path(hardened.folder / "logs-b")
    assert hardened.http.post("/admin/functions/own%2Fuser/cool").is_success
    eventually(lambda: not hardened.function("own/user")["instances"], what="it to be gone")

    assert (report["user"], report["home"]) == (ACCOUNT.pw_uid, ACCOUNT.pw_dir)
    assert 0 not in report["groups"]
    assert report["no_new_privs"] == "1"
    assert {int(held, 16) for held in report["capabilities"]} == {0}
    assert report["core"] == [0, 0]
    assert (report["temporary"], report["mode"]) == (f"/tmp/cortex-{instance['id']}", "0o700")
    assert report["readable"] == ["/etc/passwd"]
    assert not Path(report["temporary"]).exists()
    assert {p.stat().st_uid for p in log.rglob("*.log")} == {0}
    assert {p.stat().st_mode & 0o777 for p in log.rglob("*.log")} == {0o600}
