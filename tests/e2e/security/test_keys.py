"""API keys on a running cortex with two router workers, from creation to revocation."""

import json
import re
import threading
from typing import Any
from urllib.parse import quote

import pytest
import redis

from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def test_a_key_opens_only_its_functions_by_either_header_and_by_alias(keyed: Keyed) -> None:
    keyed.everywhere("inference", 200)

    with keyed.client() as http:
        body = {"model": "mine", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        by_api_key = http.post("/v1/messages", json=body, headers={"x-api-key": keyed.keys["inference"]})

    assert by_api_key.status_code == 200
    assert keyed.ask("inference", "two/other").status_code == 404
    assert keyed.ask("inference", "theirs").status_code == 404
    assert keyed.ask("other", "one/open").status_code == 404


def test_errors_of_authentication_have_the_form_of_the_paths_dialect(keyed: Keyed) -> None:
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
    assert (forbidden.status_code, forbidden.json()["error"]["type"]) == (404, "not_found_error")


def test_a_key_lists_only_its_models(keyed: Keyed) -> None:
    keyed.everywhere("inference", 200)
    with keyed.client("inference") as http:
        listed_ids = [m["id"] for m in http.get("/v1/models").json()["data"]]
        other = http.get("/v1/models/two%2Fother")
    misspelt = keyed.ask("inference", "two/othr")

    assert [id for id in listed_ids if not id.startswith("one/")] == ["mine"]
    assert "one/open" in listed_ids
    assert other.status_code == 404
    assert misspelt.status_code == 404
    assert "two/other" not in misspelt.text


MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("names", [("two/other", "two/othex"), ("theirs", "theirz")], ids=["id", "alias"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/{}", None),
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"max_tokens": 1, "messages": MESSAGES}),
        ("/v1/messages/count_tokens", {"messages": MESSAGES}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/api/chat", {"messages": MESSAGES}),
        ("/api/generate", {"prompt": "x"}),
        ("/api/generate", {"keep_alive": 0}),
        ("/api/embed", {"input": "x"}),
        ("/api/embeddings", {"prompt": "x"}),
        ("/api/show", {}),
        ("/api/pull", {}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_forbidden_model_is_answered_like_a_missing_one(
    keyed: Keyed, path: str, body: dict[str, Any] | None, names: tuple[str, str]
) -> None:
    answers = []
    for name in names:
        with keyed.client("inference") as http:
            if body is None:
                answer = http.get(path.format(quote(name, safe="")))
            else:
                answer = http.post(path, json={"model": name, **body})
        changing = ("x-request-id", "request-id", "date")
        headers = {k: v for k, v in answer.headers.items() if k not in changing}
        text = answer.text.replace(name, "NAME").replace(answer.headers["x-request-id"], "ID")
        answers.append((answer.status_code, text, headers))

    forbidden, missing = answers
    assert forbidden[0] == 404
    assert forbidden == missing


@pytest.mark.long
def test_a_shared_request_id_is_cancelled_for_the_named_key_only(keyed: Keyed) -> None:
    keyed.keys["second"] = keyed.make("second", functions=["one/*"])
    keyed.everywhere("second", 200)
    texts: dict[str, str] = {}

    def ask(key: str) -> None:
        body = {"model": "one/long", "messages": MESSAGES, "stream": True}
        with keyed.client(key) as http:
            texts[key] = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "shared"}).text

    asking = [threading.Thread(target=ask, args=(key,)) for key in ("inference", "second")]
    for one in asking:
        one.start()
    with keyed.client("admin") as http:
        eventually(
            lambda: (
                [r["phase"] for r in http.get("/admin/requests/shared").json().get("requests", [])] == ["streaming"] * 2
            ),
            what="both requests",
        )
        shared = http.get("/admin/requests/shared").json()["requests"]
        of_one = http.get("/admin/requests/shared", params={"key": "second"}).json()["requests"]
        unclear = http.post("/admin/requests/shared/cancel")
        cancelled = keyed.cli("req", "cancel", "shared", "--key", "second", "--json", key=keyed.keys["admin"])
    for one in asking:
        one.join(20)

    assert {r["who"] for r in shared} == {"inference", "second"}
    assert [r["who"] for r in of_one] == ["second"]
    assert (unclear.status_code, unclear.json()["error"]["code"]) == (400, "request_id_shared")
    assert "inference, second" in unclear.json()["error"]["message"]
    assert json.loads(cancelled.stdout) == {"id": "shared", "cancelled": 1}
    assert "cancelled by an operator" in texts["second"]
    assert texts["inference"].rstrip().endswith("[DONE]")


def test_new_and_revoked_keys_take_effect_on_every_worker_within_a_second(keyed: Keyed) -> None:
    key = keyed.make("passing")
    eventually(lambda: all(keyed.ask(key).status_code == 200 for _ in range(6)), within_s=1.5, what="it to open")

    assert keyed.cli("key", "revoke", "passing").code == 0

    eventually(lambda: all(keyed.ask(key).status_code == 401 for _ in range(6)), within_s=1.5, what="it to end")


def test_a_key_is_created_with_all_its_options(keyed: Keyed) -> None:
    answer = keyed.cli(
        "key", "new", "whole", "--functions", "one/*", "--functions", "two/x", "--rpm", "7", "--tpm", "900",
        "--concurrent", "3", "--priority", "high", "--group", "search", "--expires", "30d", "--json",
    )  # fmt: skip
    (row,) = [k for k in json.loads(keyed.cli("key", "ls", "--json").stdout) if k["name"] == "whole"]

    assert answer.code == 0
    assert json.loads(answer.stdout)["key"].startswith("sk-cortex-")
    assert (row["scope"], row["functions"], row["priority"]) == ("inference", ["one/*", "two/x"], "high")
    assert row["limits"] == {"rpm": 7, "tpm": 900, "concurrent": 3}
    assert row["group"] == "search"
    assert 29 * 86400 < row["expires"] - row["created"] <= 30 * 86400 + 5


def test_a_keys_group_can_change_and_survives_a_rotation(keyed: Keyed) -> None:
    keyed.make("mover", group="one")
    changed = json.loads(keyed.cli("key", "set", "mover", "--group", "two", "--json").stdout)
    rotated = json.loads(keyed.cli("key", "rotate", "mover", "--overlap", "1h", "--json").stdout)
    shown = keyed.cli("key", "show", "mover").stdout
    left = keyed.cli("key", "set", "mover", "--group", "")

    assert [k["group"] for k in changed] == ["two"]
    assert rotated["group"] == "two"
    assert "shared within the group two" in shown
    assert left.stdout == "mover: cached prompts: its own\n"
    with keyed.client("status") as http:
        assert [k["group"] for k in http.get("/admin/keys/mover").json()["keys"]] == ["", ""]


def test_a_renamed_key_keeps_its_id_and_its_usage(keyed: Keyed) -> None:
    secret = keyed.make("before")
    keyed.everywhere(secret, 200)

    def usage(name: str) -> int:
        groups = json.loads(keyed.cli("usage", "--json").stdout)["groups"]
        return sum(int(g["requests"]) for g in groups if g["name"].startswith(f"{name} ("))

    counted = eventually(lambda: usage("before"), what="its usage")
    (renamed,) = json.loads(keyed.cli("key", "set", "before", "--name", "after", "--json").stdout)
    taken = keyed.cli("key", "set", "after", "--name", "status")

    assert renamed["name"] == "after"
    eventually(lambda: usage("after") >= counted and not usage("before"), what="its usage under the new name")
    assert keyed.ask(secret).status_code == 200
    assert keyed.cli("key", "show", "before").code != 0
    assert "exists already" in taken.stderr


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


def test_an_expired_key_is_rejected_and_still_listed(keyed: Keyed) -> None:
    key = keyed.cli("key", "new", "brief", "--expires", "1s").stdout.split()[-1]

    keyed.everywhere(key, 401)

    row = next(k for k in json.loads(keyed.cli("key", "ls", "--json").stdout) if k["name"] == "brief")
    assert row["expires"] > 0


def test_a_key_is_shown_once_and_stored_nowhere(keyed: Keyed) -> None:
    key = keyed.make("secret")
    everything = [keyed.cli("key", *a).stdout for a in (["ls"], ["ls", "--json"], ["show", "secret"])]
    with redis.Redis.from_url(keyed.redis_url) as client:
        for name in client.scan_iter("cortex:key:*"):
            everything += [repr(name), repr(client.hgetall(name))]
    everything += [keyed.stack.log(name) for name in ("router", "agent")]

    secrets = [key, *(k for k in keyed.keys.values() if k.startswith("sk-cortex-"))]  # the others are no keys
    assert key.startswith("sk-cortex-")
    assert [s for s in secrets for text in everything if s in text] == []


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        (["new", "admin"], 1, "an API key 'admin' exists already"),
        (["new", "bad name"], 2, "a name has letters"),
        (["new", "x", "--expires", "soon"], 2, "is not like 30d"),
        (["new", "x", "--admin", "--status"], 2, "either --admin or --status"),
        (["show", "nobody"], 4, "there is no API key 'nobody'"),
        (["set", "missing", "--group", "x"], 4, "there is no API key 'missing'"),
        (["set", "admin", "--group", "a b"], 2, "a name has letters"),
        (["revoke", "nobody"], 4, "there is no API key 'nobody'"),
    ],
)
def test_an_impossible_action_on_a_key_is_an_error_with_the_reason(
    keyed: Keyed, command: list[str], code: int, output: str
) -> None:
    done = keyed.cli("key", *command)

    assert done.code == code
    assert output in re.sub(r"[\s│]+", " ", done.stderr)


def test_a_command_with_a_rejected_key_names_the_source_of_the_key(keyed: Keyed) -> None:
    refused = keyed.cli("fn", "ls", key=keyed.keys["inference"])

    assert refused.code == 1
    assert "has scope inference" in refused.stderr
    assert "These commands send CORTEX_API_KEY" in refused.stderr
    assert keyed.cli("fn", "ls").code == 0


def test_the_local_key_is_readable_by_its_user_only(keyed: Keyed) -> None:
    path = keyed.stack.folder / "state" / "cortex" / "local.key"

    assert path.stat().st_mode & 0o777 == 0o600
    with keyed.client("local") as http:
        assert http.get("/admin/functions").status_code == 200
