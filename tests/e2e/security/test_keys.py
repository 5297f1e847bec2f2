"""API keys on a running cortex of two router workers, from their making to their end."""

import json
import re

import pytest
import redis

from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def test_a_key_opens_its_functions_only_by_either_header_and_an_alias_counts_as_its_function(keyed: Keyed) -> None:
    keyed.everywhere("inference", 200)

    with keyed.client() as http:
        body = {"model": "mine", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        by_api_key = http.post("/v1/messages", json=body, headers={"x-api-key": keyed.keys["inference"]})

    assert by_api_key.status_code == 200
    assert keyed.ask("inference", "two/other").status_code == 403
    assert keyed.ask("inference", "theirs").status_code == 403
    assert keyed.ask("other", "one/open").status_code == 403


def test_refusals_at_the_door_are_said_in_the_dialect_of_the_path(keyed: Keyed) -> None:
    keyed.everywhere("", 401)
    with keyed.client() as http:
        openai = http.post("/v1/chat/completions", json={})
        anthropic = http.post("/v1/messages", json={})
        wrong = http.get("/v1/models", headers={"x-api-key": "sk-cortex-guess", "anthropic-version": "2023-06-01"})
    with keyed.client("inference") as http:
        forbidden = http.post(
            "/v1/messages", json={"model": "theirs", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        )

    assert openai.status_code == anthropic.status_code == wrong.status_code == 401
    assert openai.json()["error"]["code"] == "invalid_api_key"
    assert openai.headers["www-authenticate"] == "Bearer"
    assert anthropic.json()["error"]["type"] == wrong.json()["error"]["type"] == "authentication_error"
    assert (forbidden.status_code, forbidden.json()["error"]["type"]) == (403, "permission_error")


def test_a_key_sees_only_the_models_it_may_use_and_is_told_of_no_others(keyed: Keyed) -> None:
    keyed.everywhere("inference", 200)
    with keyed.client("inference") as http:
        listed_ids = [m["id"] for m in http.get("/v1/models").json()["data"]]
        other = http.get("/v1/models/two%2Fother")
    misspelt = keyed.ask("inference", "two/othr")

    assert listed_ids == ["one/open", "one/slow", "mine"]
    assert other.status_code == 403
    assert misspelt.status_code == 404
    assert "two/other" not in misspelt.text


def test_a_new_key_works_and_a_revoked_one_ends_on_every_worker_within_a_second(keyed: Keyed) -> None:
    key = keyed.make("passing")
    eventually(lambda: all(keyed.ask(key).status_code == 200 for _ in range(6)), within_s=1.5, what="it to open")

    assert keyed.cli("key", "revoke", "passing").code == 0

    eventually(lambda: all(keyed.ask(key).status_code == 401 for _ in range(6)), within_s=1.5, what="it to end")


def test_a_key_is_made_with_all_that_it_may_and_may_not(keyed: Keyed) -> None:
    made = keyed.cli(
        "key", "new", "whole", "--functions", "one/*", "--functions", "two/x", "--rpm", "7", "--tpm", "900",
        "--concurrent", "3", "--priority", "high", "--expires", "30d", "--json",
    )  # fmt: skip
    (row,) = [k for k in json.loads(keyed.cli("key", "ls", "--json").stdout) if k["name"] == "whole"]

    assert made.code == 0
    assert json.loads(made.stdout)["key"].startswith("sk-cortex-")
    assert (row["scope"], row["functions"], row["priority"]) == ("inference", ["one/*", "two/x"], "high")
    assert row["limits"] == {"rpm": 7, "tpm": 900, "concurrent": 3}
    assert 29 * 86400 < row["expires"] - row["created"] <= 30 * 86400 + 5


def test_rotating_ends_the_old_key_at_once_or_after_the_overlap(keyed: Keyed) -> None:
    first = keyed.make("turning", rpm=1000)
    second = keyed.cli("key", "rotate", "turning", "--overlap", "1h").stdout.split()[-1]
    third = json.loads(keyed.cli("key", "rotate", "turning", "--json").stdout)["key"]

    keyed.everywhere(third, 200)
    keyed.everywhere(second, 401)
    assert keyed.ask(first).status_code == 200  # its hour is not over
    assert len({k["id"] for k in json.loads(keyed.cli("key", "ls", "--json").stdout) if k["name"] == "turning"}) == 1
    shown = keyed.cli("key", "show", "turning").stdout
    assert "requests a minute: 1000" in shown
    assert "(rotated)" in shown


def test_a_key_that_has_expired_opens_nothing_and_is_still_listed(keyed: Keyed) -> None:
    key = keyed.cli("key", "new", "brief", "--expires", "1s").stdout.split()[-1]

    keyed.everywhere(key, 401)

    row = next(k for k in json.loads(keyed.cli("key", "ls", "--json").stdout) if k["name"] == "brief")
    assert row["expires"] > 0


def test_a_key_is_shown_once_and_is_nowhere_else(keyed: Keyed) -> None:
    key = keyed.make("secret")
    everything = [keyed.cli("key", *a).stdout for a in (["ls"], ["ls", "--json"], ["show", "secret"])]
    with redis.Redis.from_url(keyed.redis_url) as client:
        for name in client.scan_iter("cortex:key:*"):
            everything += [repr(name), repr(client.hgetall(name))]
    everything += [keyed.stack.log(name) for name in ("router", "agent")]

    assert key.startswith("sk-cortex-")
    for text in everything:
        assert not [k for k in (key, *keyed.keys.values()) if k in text]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["new", "admin"], 1, "there is an API key 'admin' already"),
        (["new", "bad name"], 2, "a name has letters"),
        (["new", "x", "--expires", "soon"], 2, "is not like 30d"),
        (["new", "x", "--admin", "--status"], 2, "either --admin or --status"),
        (["show", "nobody"], 4, "there is no API key 'nobody'"),
        (["revoke", "nobody"], 4, "there is no API key 'nobody'"),
    ],
)
def test_what_cannot_be_done_with_keys_says_why(keyed: Keyed, command: list[str], code: int, said: str) -> None:
    done = keyed.cli("key", *command)

    assert done.code == code
    assert said in re.sub(r"[\s│]+", " ", done.stderr)


def test_commands_without_a_key_that_opens_say_which_one_they_send(keyed: Keyed) -> None:
    refused = keyed.cli("fn", "ls", key=keyed.keys["inference"])

    assert refused.code == 1
    assert "is for inference" in refused.stderr
    assert "CORTEX_API_KEY is the key these commands send" in refused.stderr
    assert keyed.cli("fn", "ls").code == 0


def test_the_local_key_is_its_users_alone(keyed: Keyed) -> None:
    path = keyed.stack.folder / "state" / "cortex" / "local.key"

    assert path.stat().st_mode & 0o777 == 0o600
    with keyed.client("local") as http:
        assert http.get("/admin/functions").status_code == 200
