"""A host with its own token and no fleet token: it serves, and with that file nothing else can be done."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from cortex.platform.keys import agent_token, fleet_mark, host_file, host_secrets, host_token, worker_key
from tests.e2e.security.keyed import command
from tests.support.catalogues import fake
from tests.support.factories import a_host
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import CORTEX, eventually, own_redis

pytestmark = pytest.mark.xdist_group("security")

MODELS = "\n".join(
    [
        fake("on/a", labels=["a"]),
        fake("on/b", labels=["b"]),
        fake("slow/a", "--tps", "10", "--tokens", "90", labels=["a"]),
    ]
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two hosts. `a` has its own token alone; `b` has the fleet token."""
    folder = tmp_path_factory.mktemp("own")
    own = {"CORTEX_AGENT__TOKEN_FILE": str(folder / "a.token"), "CORTEX_TOKEN_FILE": str(folder / "none")}
    hosts = {"a": {**own, "CORTEX_AGENT__LABELS": '["a"]'}, "b": {"CORTEX_AGENT__LABELS": '["b"]'}}
    with own_redis(folder) as url:
        running = Fleet(folder, url, MODELS, hosts)
        assert command(running.env, "host", "token", "a", "--output", str(folder / "a.token")).code == 0
        with running:
            yield running


@pytest.mark.long
def test_a_host_with_its_own_token_serves_and_its_next_agent_takes_its_workers_over(fleet: Fleet) -> None:
    first = fleet.chat("on/a")
    before = fleet.records()["a"].agent
    fleet.kill("a")
    fleet.start_agent("a")
    eventually(lambda: fleet.records().get("a", a_host()).agent not in ("", before), within_s=60, what="the next agent")

    again = fleet.chat("on/a")

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.headers["x-cortex-instance"] == again.headers["x-cortex-instance"]
    assert not (fleet.folder / "none").exists()


def test_with_a_hosts_token_no_other_agent_and_no_other_worker_can_be_used(fleet: Fleet) -> None:
    fleet.chat("on/b").raise_for_status()
    records = fleet.records()
    (worker,) = records["b"].instances
    (stolen,) = host_secrets(fleet.folder / "a.token", "a")
    secrets = [stolen.token, stolen.mark, stolen.line(), host_token(stolen.token, "b"), host_token(stolen.mark, "b")]
    bearers = [*secrets, *(agent_token(s, h.address) for s in secrets for h in records.values())]

    at_b = {httpx.get(f"{records['b'].address}/record", headers=bearer(b)).status_code for b in bearers}
    worker_keys = [*secrets, *(worker_key(s, worker.id) for s in secrets)]
    at_worker = {httpx.get(f"{worker.url}/v1/models", headers=bearer(k)).status_code for k in worker_keys}

    assert at_b == at_worker == {401}
    own = agent_token(stolen.token, records["a"].address)
    assert httpx.get(f"{records['a'].address}/record", headers=bearer(own)).status_code == 200


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_another_host_does_not_start_with_the_file_and_says_whose_it_is(fleet: Fleet) -> None:
    env = {**fleet.env, "CORTEX_AGENT__NAME": "c", "CORTEX_AGENT__TOKEN_FILE": str(fleet.folder / "a.token")}

    agent = subprocess.run([*CORTEX, "agent"], env=env, capture_output=True, text=True, timeout=90, check=False)

    assert agent.returncode == 1
    assert "is the token of host 'a', and this is host 'c'; `cortex host token c`" in agent.stderr


@pytest.mark.long
def test_a_worker_of_a_token_that_is_gone_finishes_its_answers_and_the_next_request_gets_another(
    fleet: Fleet,
) -> None:
    fleet.cli("fn", "warm", "slow/a", "--wait")
    before = fleet.function("slow/a")["instances"][0]["id"]
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(fleet.chat("slow/a")))
    asking.start()
    eventually(lambda: fleet.http.get("/admin/requests").json()["requests"], what="the request to be under way")
    write_tokens(fleet.folder, "another-token-5c1e", TOKEN)
    with redis.Redis.from_url(fleet.redis_url) as record:
        mark = fleet_mark("another-token-5c1e")
        eventually(lambda: record.sismember("cortex:fleet", mark), what="the record to bear the new token's mark")
    fleet.kill("a")
    write_tokens(fleet.folder, "another-token-5c1e")
    fleet.start_agent("a")
    eventually(lambda: '"worker_refuses_key"' in fleet.log("a"), within_s=60, what="the agent to find its worker")
    asking.join(60)

    def another() -> bool:
        answer = fleet.chat("slow/a", max_tokens=1)
        return answer.is_success and answer.headers["x-cortex-instance"] != before

    assert [(a.status_code, a.headers["x-cortex-instance"]) for a in answers] == [(200, before)]
    assert eventually(another, within_s=60, what="another worker to answer")


def write_tokens(folder: Path, *tokens: str) -> None:
    (folder / "token").write_text("\n".join(tokens))
    (folder / "a.token").write_text(host_file(tokens, "a"))
