"""Usage of a running cortex with two router workers: its sums are those of the request log."""

import json
from typing import Any

import pytest

from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")
REQUESTS = 12


def key_id(keyed: Keyed, name: str) -> str:
    return str(json.loads(keyed.cli("key", "show", name, "--json", key=keyed.keys["admin"]).stdout)[0]["id"])


def usage(keyed: Keyed, path: str, caller: str, **query: str) -> dict[str, Any]:
    with keyed.client(caller) as http:
        answer = http.get(path, params=query)
    answer.raise_for_status()
    result: dict[str, Any] = answer.json()
    return result


def test_sums_are_those_of_the_request_log_and_each_key_reads_its_own(keyed: Keyed) -> None:
    secret = keyed.make("counted", functions=["one/*"])
    keyed.everywhere(secret, 200)
    for n in range(REQUESTS):
        assert keyed.ask(secret, max_tokens=1 + n % 3).status_code == 200
    id = key_id(keyed, "counted")

    def logged() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in keyed.stack.log("router").splitlines() if '"counted"' in line]
        return [line for line in lines if line.get("key") == "counted"]

    def both() -> tuple[dict[str, Any], dict[str, int]]:
        lines = logged()
        names = ("tokens_in", "tokens_out", "cached")
        return usage(keyed, "/admin/usage", "admin", key=id)["total"], {
            "requests": len(lines),
            **{name: sum(line[name] for line in lines) for name in names},
        }

    def agree() -> bool:
        counted, log = both()
        return log["requests"] > REQUESTS and log.items() <= counted.items()

    eventually(agree, within_s=20, what="the sums of the log")
    own = usage(keyed, "/v1/usage", secret, by="function")
    assert [g["name"] for g in own["groups"]] == ["one/open"]
    assert own["total"] == both()[0]
    assert usage(keyed, "/v1/usage", "other", by="function")["total"] != own["total"]


def test_the_usage_of_a_revoked_key_stays_under_its_name_until_it_is_forgotten(keyed: Keyed) -> None:
    secret, admin = keyed.make("former-colleague", functions=["one/*"]), keyed.keys["admin"]
    keyed.everywhere(secret, 200)
    name = f"former-colleague ({key_id(keyed, 'former-colleague')})"
    eventually(lambda: name in keyed.cli("usage", key=admin).stdout, within_s=20, what="its usage")
    eventually(
        lambda: usage(keyed, "/v1/usage", secret)["total"]["requests"] >= 6, within_s=20, what="all of its usage"
    )
    assert keyed.cli("key", "revoke", "former-colleague", key=admin).code == 0

    revoked = keyed.cli("usage", "--csv", key=admin)
    forgotten = keyed.cli("usage", "forget", "former-colleague", key=admin)

    assert name in revoked.stdout
    assert (
        revoked.stdout.splitlines()[0]
        == "key,requests,tokens_in,tokens_out,cached,cold_starts,usd,gpu_s,joules,audio_s,characters,images"
    )
    assert "rows deleted" in forgotten.stdout
    assert "former-colleague" not in keyed.cli("usage", key=admin).stdout


def test_bad_times_and_groups_are_refused_by_name(keyed: Keyed) -> None:
    admin = keyed.keys["admin"]

    assert "--until is before --since" in keyed.cli("usage", "--since", "1h", "--until", "2h", key=admin).stderr
    assert "'colour' is not one of" in keyed.cli("usage", "--by", "colour", key=admin).stderr
    with keyed.client("admin") as http:
        assert http.get("/admin/usage", params={"by": "colour"}).status_code == 400
        assert http.get("/admin/usage", params={"since": "2", "until": "1"}).status_code == 400
