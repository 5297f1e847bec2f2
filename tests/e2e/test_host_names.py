"""Two machines with one name: one is in the record, and both are listed."""

import signal
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.support.catalogues import fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.long

QUICK = {"CORTEX_AGENT__HEARTBEAT_S": "0.5"}


class Twins(Fleet):
    """An agent and a router; `start_agent("other")` starts a second agent of the same name."""

    def __enter__(self) -> Self:
        other = self._agent_env.pop("other")
        super().__enter__()
        self._agent_env["other"] = other | {"CORTEX_AGENT__NAME": "twin"}
        return self

    def addresses(self) -> list[str]:
        """Return the addresses of both agents."""
        return [f"http://{env['CORTEX_AGENT__LISTEN']}" for env in self._agent_env.values()]

    def in_record(self) -> str:
        """Return the address of the host that the router knows; empty when it knows none."""
        hosts = self.http.get("/admin/hosts").json()["hosts"]
        return str(hosts[0]["address"]) if hosts else ""


@pytest.mark.long
def test_of_two_machines_with_one_name_only_the_first_publishes(tmp_path: Path) -> None:
    models, agents = fake("warm"), {"twin": QUICK, "other": QUICK}
    with own_redis(tmp_path) as redis_url, Twins(tmp_path, redis_url, models, agents) as fleet:
        ours, theirs = fleet.addresses()
        assert fleet.chat("warm").status_code == 200

        # While the first one is alive, the second refuses to start.
        fleet.start_agent("other")
        assert fleet.processes["other"].wait(20) == 1
        refusal = fleet.log("other")
        assert "another machine has the host name 'twin' since" in refusal
        assert f"{ours}, version" in refusal
        assert "`[agent] name`" in refusal

        # The first one is cut off for longer than its record lives: the second one gets the name.
        fleet.processes["twin"].send_signal(signal.SIGSTOP)
        eventually(lambda: not fleet.records(), what="the record of the first to expire")
        fleet.start_agent("other")
        eventually(lambda: fleet.in_record() == theirs, within_s=30, what="the second to be in the record")

        # The first one comes back, keeps its worker, and publishes nothing.
        fleet.processes["twin"].send_signal(signal.SIGCONT)
        shared = eventually(lambda: fleet.http.get("/health").json()["shared_names"], what="both to be named")
        bearer = {"authorization": f"Bearer {TOKEN}"}
        health = httpx.get(f"{ours}/health", headers=bearer, trust_env=False).json()
        assert shared == {"twin": [theirs, ours]}
        assert fleet.http.get("/health").json()["status"] == "degraded"
        assert health["status"] == "degraded"
        assert any(theirs in problem for problem in health["problems"])
        assert (
            f"two machines have this name: {theirs} is in the record, {ours} is rejected" in fleet.cli("doctor").stdout
        )
        assert f"{ours} also has this name" in fleet.cli("host", "ls").stdout
        assert len(fleet.workers()) == 1

        # The second one goes: the first is in the record again, its worker as warm as before.
        fleet.kill("other", signal.SIGTERM)
        eventually(lambda: fleet.in_record() == ours, what="the first to be in the record again")
        eventually(lambda: fleet.http.get("/health").json()["status"] == "ok", what="all to be well")
        assert fleet.chat("warm").headers["x-cortex-start"] == "hot"
        assert fleet.spawned() == 1
