"""Names: aliases as in the Rust system's gateway, ids with slashes, and unknown names."""

import json

import httpx
import pytest

from tests.e2e.workers import ONE
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [ONE], indirect=True)


def test_an_alias_reaches_the_worker_as_the_concrete_id(stack: Stack) -> None:
    answer = stack.chat("smaller", max_tokens=4)

    assert answer.status_code == 200
    assert answer.json()["model"] == "tiny/alpha"
    assert answer.headers["x-cortex-function"] == "tiny/alpha"


def test_an_alias_and_its_target_are_listed_with_equal_locations(stack: Stack) -> None:
    stack.chat("small", max_tokens=1)

    listed = {m["id"]: m for m in stack.http.get("/v1/models").json()["data"]}

    assert listed["small"]["alias_of"] == listed["smaller"]["alias_of"] == "tiny/alpha"
    assert listed["tiny/alpha"]["alias_of"] is None
    for key in ("loaded", "state", "locations", "feasible_on"):
        assert listed["small"][key] == listed["tiny/alpha"][key]
    assert listed["small"]["loaded"] is True


def test_an_id_that_is_not_an_alias_is_used_as_is(stack: Stack) -> None:
    assert stack.chat("tiny/alpha", max_tokens=1).status_code == 200


def test_models_are_listed_in_catalogue_order(stack: Stack) -> None:
    first, second = (stack.http.get("/v1/models").json() for _ in range(2))

    ids = [m["id"] for m in first["data"]]
    assert ids[:3] == ["cortex/harbour", "tiny/alpha", "tiny/bravo"]
    assert ids[-4:] == ["small", "crowd", "steps", "smaller"]
    assert ids == [m["id"] for m in second["data"]]
    assert {m["object"] for m in first["data"]} == {"model"}


def test_an_id_with_a_slash_is_found_plain_and_encoded(stack: Stack) -> None:
    plain, encoded = stack.http.get("/v1/models/tiny/bravo"), stack.http.get("/v1/models/tiny%2Fbravo")

    assert plain.json()["id"] == encoded.json()["id"] == "tiny/bravo"
    assert plain.json()["feasible_on"] == ["here"]


def test_a_function_without_a_host_for_its_engine_is_listed_with_the_reason(stack: Stack) -> None:
    listed = stack.http.get("/v1/models/broken/engine").json()
    answer = stack.chat("broken/engine")

    assert listed["feasible_on"] == []
    assert answer.status_code == 503
    assert "engine 'vllm' is not there" in answer.json()["error"]["message"]


def test_a_name_outside_the_catalogue_is_404_with_the_nearest_names(stack: Stack) -> None:
    request, looked = stack.chat("tiny/alfa"), stack.http.get("/v1/models/tiny/alfa")

    for answer in (request, looked):
        error = answer.json()["error"]
        assert answer.status_code == 404
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'tiny/alpha'" in error["message"]
        assert answer.headers["x-request-id"].startswith("req_")


def test_an_invalid_body_is_400_with_the_field(stack: Stack) -> None:
    def post(body: bytes) -> httpx.Response:
        return stack.http.post("/v1/chat/completions", content=body)

    for body, param in (
        (b"{}", "model"),
        (b'{"model": 3}', "model"),
        (b'{"model":"small","stream":"x","messages":[]}', "stream"),
        (b'{"model":"small"}', "messages"),
        (b'{"model":"small","messages":[]}', "messages"),
    ):
        answer = post(body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    for body in (b"", b"nope", b"[]", b'{"model": "\xff"}', b"[" * 100_000):
        assert post(body).status_code == 400


def test_errors_of_the_framework_have_openais_envelope(stack: Stack) -> None:
    lost = stack.http.get("/v1/nowhere")
    wrong_method = stack.http.get("/v1/chat/completions")
    of_the_framework = stack.http.put("/v1/files")
    large = stack.http.post("/v1/chat/completions", content=b" " * (21 * 1024 * 1024))

    for answer, status in ((lost, 404), (wrong_method, 405), (of_the_framework, 405), (large, 413)):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]
    assert [set(a.headers["allow"].split(", ")) for a in (wrong_method, of_the_framework)] == [
        {"OPTIONS", "POST"},
        {"GET", "OPTIONS", "POST"},
    ]


@pytest.mark.long
def test_a_valid_change_of_the_catalogue_takes_effect_and_an_invalid_one_does_not(stack: Stack) -> None:
    before = stack.models.read_text()
    stack.chat("tiny/bravo", max_tokens=1)
    untouched = stack.instance("tiny/bravo")["id"]
    stack.chat("fake/steps")
    try:
        stack.models.write_text(before.replace('"one two three"', '"four five"') + '"tiny" = "tiny/alpha"\n')
        eventually(lambda: stack.http.get("/v1/models/tiny").status_code == 200, what="the new alias")
        eventually(
            lambda: stack.chat("fake/steps").json()["choices"][0]["message"]["content"] == "four five",
            what="the new revision to answer",
        )
        eventually(lambda: len(stack.function("fake/steps")["instances"]) == 1, what="the old revision to go")

        stack.models.write_text("[[models]]\nid = ")
        eventually(lambda: stack.http.get("/health").json()["catalogue"] != "ok", what="the complaint")
        health = stack.http.get("/health").json()
        still = stack.chat("tiny/bravo", max_tokens=1)
    finally:
        stack.models.write_text(before)
    eventually(lambda: stack.http.get("/health").json()["catalogue"] == "ok", what="the old catalogue again")

    assert "is not TOML" in health["catalogue"]
    assert (still.status_code, still.headers["x-cortex-instance"]) == (200, untouched)
    assert json.loads(stack.cli("status", "--json").stdout)["health"]["status"] == "ok"
