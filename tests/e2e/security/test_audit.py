"""The audit record of a running cortex: what two router workers write about real operators."""

import json
from typing import Any

import pytest
import redis

from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def entries(keyed: Keyed, **filters: str) -> list[dict[str, Any]]:
    with keyed.client("admin") as http:
        answer = http.get("/admin/audit", params=filters)
    answer.raise_for_status()
    result: list[dict[str, Any]] = answer.json()["entries"]
    return result


def entry_of(keyed: Keyed, target: str, **filters: str) -> dict[str, Any]:
    def matches() -> list[dict[str, Any]]:
        return [e for e in entries(keyed, **filters) if e.get("target") == target]

    return eventually(matches, what=f"an entry about {target}")[0]


def test_changes_and_log_reads_are_recorded_without_secrets_or_search_text(keyed: Keyed) -> None:
    keyed.everywhere("inference", 200)
    with keyed.client("admin") as http:
        http.post("/admin/functions/one/open/pin").raise_for_status()
        http.post("/admin/functions/one/open/unpin").raise_for_status()
        secret = http.post("/admin/keys", json={"name": "audited", "group": "g"}).json()["key"]
        http.get("/admin/logs", params={"function": "one/open", "grep": "my prompt"}).raise_for_status()
        refused = http.post("/admin/functions/one/missing/warm")

    pin = entry_of(keyed, "one/open", what="function pin")
    new = entry_of(keyed, "audited", what="key new")
    read = entry_of(keyed, "one/open", what="log")
    failed = entry_of(keyed, "one/missing", what="function warm")

    assert (pin["name"], pin["address"], pin["status"]) == ("admin", "127.0.0.1", 200)
    assert pin["by"].startswith("k")
    assert new["detail"] == {"group": "g"}
    assert failed["status"] == refused.status_code == 404
    with redis.Redis.from_url(keyed.redis_url) as raw:
        stream = str(raw.xrange("cortex:audit"))
    for text in ("my prompt", secret, keyed.keys["admin"]):
        assert text not in stream
    assert "grep" not in str(read)
    assert keyed.cli("key", "revoke", "audited", key=keyed.keys["admin"]).code == 0


def test_plans_and_rejected_callers_are_not_recorded(keyed: Keyed) -> None:
    with keyed.client("admin") as http:
        http.post("/admin/functions/one/late/warm?plan=1").raise_for_status()
    with keyed.client("inference") as http:
        assert http.post("/admin/functions/one/late/warm").status_code == 403
    with keyed.client("admin") as http:
        http.post("/admin/functions/one/late/reset").raise_for_status()

    entry_of(keyed, "one/late", what="function reset")

    assert [e["what"] for e in entries(keyed, what="function") if e["target"] == "one/late"] == ["function reset"]


def test_the_command_lists_changes_by_a_router_and_by_the_record(keyed: Keyed) -> None:
    env_key = keyed.keys["admin"]
    created = keyed.cli("key", "new", "direct", "--record", key=env_key)
    revoked = keyed.cli("key", "revoke", "direct", key=env_key)
    assert (created.code, revoked.code) == (0, 0), created.stderr + revoked.stderr
    entry_of(keyed, "direct", what="key revoke")

    table = keyed.cli("audit", "--since", "1h", "--what", "key", key=env_key)
    direct = json.loads(keyed.cli("audit", "--by", "record", "--json", key=env_key).stdout)
    none = keyed.cli("audit", "--by", "no-such-key", key=env_key)

    rows = [line.split() for line in table.stdout.splitlines() if line.startswith("direct")]
    assert [row[1:3] for row in rows] == [["key", "revoke"], ["key", "new"]]
    assert [e["what"] for e in direct if e["target"] == "direct"] == ["key new"]
    assert "@" in direct[0]["address"]
    assert none.stdout.startswith("No matching entries")


def test_the_command_refuses_a_bad_time_and_a_key_without_the_right(keyed: Keyed) -> None:
    bad = keyed.cli("audit", "--since", "yesterday", key=keyed.keys["admin"])
    forbidden = keyed.cli("audit", key=keyed.keys["status"])

    assert "'yesterday' is not like 30d" in bad.stderr
    assert forbidden.code != 0
    assert "needs scope admin" in forbidden.stderr
