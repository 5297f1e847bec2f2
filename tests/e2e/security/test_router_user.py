"""A router with a user of its own, as the deployment has it: what it needs it may read, and engines may not."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cortex.platform.keys import host_file
from tests.e2e.security.test_worker_user import nobody_may_read
from tests.support.catalogues import fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import eventually, own_redis

pytestmark = [
    pytest.mark.xdist_group("security"),
    pytest.mark.long,
    pytest.mark.skipif(
        os.geteuid() != 0 or not nobody_may_read(Path(sys.executable)) or not nobody_may_read(Path(__file__)),
        reason="needs root, and a Python and a checkout that others can read",
    ),
]

AGENTS, ROUTERS = pwd.getpwnam("daemon"), pwd.getpwnam("games")
"""Two users that every Linux has, as `cortex` and `cortex-router`."""
OF_ROUTER = ("token", "redis-router.password")
MODELS = "\n".join([fake("one"), fake("long", "--tps", "10", "--tokens", "80")])


def as_user(user: pwd.struct_passwd) -> list[str]:
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


class TwoUsers(Fleet):
    """One host. Programs run as the users of the deployment; `router_user` is who runs the router that starts next."""

    router_user = ROUTERS

    def _spawn(self, name: str, **started: Any) -> None:
        prefix = as_user(self.router_user if name == "router" else AGENTS)
        super()._spawn(name, **{**started, "args": [*prefix, *started["args"]]})

    def owned_by_router(self, user: pwd.struct_passwd) -> None:
        """Give a user what the router alone may read or write, as Ansible and systemd do."""
        for name in OF_ROUTER:
            os.chown(self.folder / name, 0, user.pw_gid)
            (self.folder / name).chmod(0o640)
        for path in (self.folder / "run", *(self.folder / "run").rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)


@pytest.fixture
def fleet() -> Iterator[TwoUsers]:
    folder = Path(tempfile.mkdtemp(prefix="cortex-users-"))
    folder.chmod(0o755)
    own = {"CORTEX_AGENT__TOKEN_FILE": str(folder / "a.token"), "CORTEX_TOKEN_FILE": str(folder / "none")}
    cache = {"CORTEX_AGENT__CACHE_DIR": str(folder / "cache")}
    try:
        with own_redis(folder) as url, socket.create_server(("127.0.0.1", 0)) as held:
            (folder / "r.sock").chmod(0o777)
            running = TwoUsers(folder, url, MODELS, {"a": {**own, **cache}}, held=held)
            running.env["CORTEX_GATEWAY__METRICS_DIR"] = str(folder / "run")
            (folder / "redis-router.password").write_text("secret")
            (folder / "run").mkdir(mode=0o700)
            running.owned_by_router(ROUTERS)
            (folder / "a.token").write_text(host_file((TOKEN,), "a"))
            (folder / "a.token").chmod(0o640)
            os.chown(folder / "a.token", 0, AGENTS.pw_gid)
            running.models.chmod(0o644)
            for name in ("state-a", "logs-a", "cache", "state"):
                (folder / name).mkdir()
                os.chown(folder / name, AGENTS.pw_uid, AGENTS.pw_gid)
            yield running
            running.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_the_router_reads_the_user_of_agents_and_engines_may_not(fleet: TwoUsers) -> None:
    with fleet:
        answer = fleet.chat("one")
        paths = [*(fleet.folder / name for name in OF_ROUTER), *(fleet.folder / "run").rglob("*.json")]
        read = [subprocess.run([*as_user(AGENTS), "cat", str(p)], capture_output=True, check=False) for p in paths]
        environ = Path("/proc", str(fleet.processes["router"].pid), "environ")
        of_process = subprocess.run([*as_user(AGENTS), "cat", str(environ)], capture_output=True, check=False)

    assert answer.status_code == 200
    assert len(paths) > len(OF_ROUTER)
    assert {r.returncode for r in (*read, of_process)} == {1}


def test_the_first_router_with_its_own_user_takes_over_from_one_that_ran_as_the_agents(fleet: TwoUsers) -> None:
    fleet.router_user = AGENTS
    fleet.owned_by_router(AGENTS)
    with fleet, ThreadPoolExecutor(1) as pool:
        assert fleet.cli("fn", "warm", "long", "--wait").returncode == 0
        stream = pool.submit(fleet.chat, "long")
        eventually(lambda: fleet.http.get("/admin/requests").json()["requests"], what="the answer to be under way")
        fleet.kill("router", signal.SIGTERM)
        fleet.router_user = ROUTERS
        fleet.owned_by_router(ROUTERS)
        fleet.start_router()
        answer = fleet.chat("one")
        whole = stream.result(60)

    assert (answer.status_code, whole.status_code) == (200, 200)
    assert whole.json()["usage"]["completion_tokens"] == 80
