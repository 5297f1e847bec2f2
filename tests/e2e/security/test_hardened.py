"""With all protections on, cortex serves, and each process has only the rights that it needs."""

import json
import pickle
from typing import Any

import httpx
import pytest
import redis

from cortex.platform.keys import host_token, worker_key
from tests.e2e.security.hardened import Hardened
from tests.support.secured_redis import PASSWORDS
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")

HOST, ROUTER = "cortex-host-a", "cortex-router"


def test_cortex_works_with_restricted_redis_users(hardened: Hardened) -> None:
    assert hardened.chat("fake/one").json()["choices"][0]["message"]["content"] == "one"
    assert hardened.http.post("/admin/functions/fake%2Fone/pin").is_success
    assert hardened.http.post("/admin/functions/fake%2Fone/unpin").is_success
    assert hardened.http.post("/admin/hosts/a/cordon").is_success
    assert hardened.http.post("/admin/hosts/a/uncordon").is_success
    assert hardened.http.get("/admin/decisions").json()["decisions"]
    assert hardened.http.get("/admin/requests").is_success
    assert hardened.http.get("/admin/jobs").is_success
    assert "cortex_record_up 1" in hardened.metrics()
    answer = hardened.run("key", "new", "passing", "--record", "--rpm", "100").stdout.strip()
    eventually(lambda: hardened.ask_with(answer, "fake/one").status_code == 200, what="the key to be known")
    request = hardened.ask_with(answer, "fake/one")
    revoked = hardened.run("key", "revoke", "passing", "--record")
    doctor = hardened.run("doctor").stdout

    assert (request.status_code, request.headers["x-ratelimit-limit-requests"]) == (200, "100")
    assert revoked.code == 0
    assert "✓ redis: rediss://127.0.0.1" in doctor
    # Redis before 7 has no right to say just this; redis-py goes on without.
    assert [
        r for r in hardened.record.refused() if r not in (f"{HOST}: command client", f"{ROUTER}: command client")
    ] == []


@pytest.mark.parametrize(
    ("user", "command"),
    [
        (HOST, ["HGETALL", "cortex:key:0"]),
        (HOST, ["HSET", "cortex:key:0", "name", "mine"]),
        (HOST, ["DEL", "cortex:quota:{0}"]),
        (HOST, ["SET", "cortex:sweep", "me"]),
        (ROUTER, ["HSET", "rq:job:0", "data", "x"]),
        (ROUTER, ["LPUSH", "rq:queue:other", "0"]),
        (ROUTER, ["PUBLISH", "rq:pubsub:0", "x"]),
        *((user, command.split()) for user in (HOST, ROUTER) for command in (
            "KEYS *", "FLUSHALL", "CONFIG GET *", "ACL LIST", "SCRIPT FLUSH", "GET other", "MONITOR",
            "CLIENT KILL TYPE normal", "SHUTDOWN", "REPLICAOF a 1", "MIGRATE a 1 cortex:used 0 1", "MODULE LIST",
        )),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)  # fmt: skip
def test_a_redis_user_cannot_exceed_its_rights(hardened: Hardened, user: str, command: list[str]) -> None:
    assert not hardened.record.may(user, *command)


@pytest.mark.parametrize(
    "command",
    [
        "SADD cortex:cordon b", "HSET cortex:override:f min 9", "SADD cortex:overrides f", "SET cortex:host:b x",
        "SET cortex:counts:b x", "SET cortex:router:r x", "SREM cortex:routers r", "DEL cortex:decisions",
        "XTRIM cortex:decisions MAXLEN 0", "PUBLISH rq:pubsub:b x", "PUBLISH rq:pubsub:cortex-b-0 x",
        "LPUSH rq:queue:cortex-b 0", "HSET rq:job:cortex-b-0 data x", "DEL rq:worker:cortex-b-0", "SET cortex:x x",
    ],
)  # fmt: skip
def test_a_host_cannot_act_as_an_operator_or_another_host(hardened: Hardened, command: str) -> None:
    if not hardened.record.reads_apart and not command.startswith(("SET cortex:counts", "PUBLISH", "LPUSH")):
        pytest.skip("Redis before 7 has no separate right to read a key")

    assert not hardened.record.may(HOST, *command.split())


def test_the_former_common_user_of_hosts_has_no_rights(hardened: Hardened) -> None:
    with redis.Redis.from_url(hardened.record.admin_url) as client:
        line = next(u for u in client.acl_list() if u.startswith("user cortex-host "))

    assert line.endswith("resetchannels -@all +ping")


def test_a_forged_job_runs_no_code(hardened: Hardened) -> None:
    mark = hardened.folder / "ran"
    call: list[Any] = ["os.system", None, [f"touch {mark}"], {}]
    jobs = {"pickled": pickle.dumps(tuple(call)), "json": json.dumps(call).encode()}
    with redis.Redis.from_url(hardened.record.admin_url) as client:
        for name, data in jobs.items():
            written = {"data": data, "origin": "cortex-a", "status": "queued", "created_at": "2026-01-01T00:00:00Z"}
            written["meta"] = json.dumps({"explicit": True})  # the agent cancels others, for which no function waits
            callbacks = {f"{c}_callback_name": "os.system" for c in ("success", "failure", "stopped")}
            client.hset(f"rq:job:cortex-a-{name}", mapping={**written, **callbacks})
            client.rpush("rq:queue:cortex-a", f"cortex-a-{name}")
        over = eventually(
            lambda: (
                statuses
                if (statuses := [client.hget(f"rq:job:cortex-a-{n}", "status") for n in jobs]) == [b"failed"] * 2
                else None
            ),
            what="both to be over",
        )

    assert over == [b"failed", b"failed"]
    assert not mark.exists()


def test_no_secret_is_in_a_log_an_argument_an_environment_or_an_answer(hardened: Hardened) -> None:
    hardened.chat("fake/one")
    pages = ["/health", "/status", *(f"/admin/{p}" for p in ("functions", "hosts", "instances", "decisions", "keys"))]
    shown = {page: hardened.http.get(page).raise_for_status().text for page in pages}
    agents = ("/record", "/instances", "/metrics", "/discovery")
    shown |= {f"agent {path}": hardened.agent("GET", path).raise_for_status().text for path in agents}
    shown["functions"] = hardened.run("fn", "ls", "--json").stdout + hardened.run("fn", "show", "fake/one").stdout
    shown["redis"] = hardened.record.everything()
    shown["doctor"] = hardened.run("doctor").stdout
    shown |= hardened.texts()

    shown["why"] = hardened.run("why", "fake/one").stdout

    secrets = [*PASSWORDS.values(), hardened.token, *hardened.worker_keys(), *hardened.keys.values()]
    assert hardened.worker_keys()
    for where, text in shown.items():
        assert [s for s in secrets if s in text] == [], where
    # A worker has its own key in its environment; other processes have no secret there.
    for process, environment in hardened.environments().items():
        assert [s for s in (*PASSWORDS.values(), hardened.token) if s in environment] == [], process


def test_a_worker_accepts_only_its_own_key(hardened: Hardened) -> None:
    for name in ("fake/one", "fake/after"):
        hardened.chat(name).raise_for_status()
    one, other = (hardened.function(name)["instances"][0] for name in ("fake/one", "fake/after"))
    url = next(i.url for i in hardened.records()["a"].instances if i.id == one["id"])
    own, others = (worker_key(host_token(hardened.token, "a"), i["id"]) for i in (one, other))

    texts = {
        who: httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False).status_code
        for who, key in {
            "its own": own, "another worker's": others, "the fleet's": hardened.token,
            "a client's": hardened.keys["high"], "a guess": "guess",
        }.items()
    }  # fmt: skip

    assert texts == {"its own": 200, "another worker's": 401, "the fleet's": 401, "a client's": 401, "a guess": 401}


@pytest.mark.long
def test_while_redis_is_away_keys_work_and_the_log_has_no_password(
    hardened: Hardened,
) -> None:
    hardened.chat("fake/one").raise_for_status()
    with hardened.record.silent():
        eventually(lambda: "record_away" in hardened.log("router"), what="the router to notice")
        known = hardened.ask_with(hardened.keys["high"], "fake/one").status_code
        unknown = hardened.ask_with("sk-cortex-unknown", "fake/one").status_code
        health = hardened.http.get("/health").json()
    eventually(lambda: hardened.http.get("/health").json()["record"] == "ok", what="the record to be followed again")

    assert (known, unknown) == (200, 401)
    assert health["record"] == "away"
    (away,) = {json.loads(x)["why"] for x in hardened.log("router").splitlines() if '"record_away"' in x}
    assert away.startswith("the record cannot be reached")
    assert not [word for word in PASSWORDS.values() if word in "".join(hardened.texts().values())]
