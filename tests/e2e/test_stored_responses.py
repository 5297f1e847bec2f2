"""Responses with state, by OpenAI's own client, on a router of two worker processes."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from cortex.platform.response_record import LEASE_S
from cortex.router.request.stored_responses import MOST_RUNS
from tests.e2e.security.keyed import Keyed, started
from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.xdist_group("security")

SECRET = "nightjar"
"""A word of a prompt that must be nowhere."""


def client(keyed: Keyed, key: str = "inference") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=keyed.keys[key], max_retries=0, timeout=60)


def create(keyed: Keyed, text: str = SECRET, model: str = "one/open", **more: Any) -> Any:
    return client(keyed).responses.create(model=model, input=text, **more)


def test_a_response_is_stored_and_continued(keyed: Keyed) -> None:
    first = create(keyed, f"{SECRET} two three")
    second = create(keyed, "four", previous_response_id=first.id)
    third = create(keyed, "five", previous_response_id=second.id)

    assert (first.store, second.previous_response_id) == (True, first.id)
    assert client(keyed).responses.retrieve(first.id).output_text == first.output_text == "one two three"
    words = [r.usage.input_tokens for r in (first, second, third)]
    assert [words[1] - words[0], words[2] - words[1]] == [4, 4]  # the answer before it, and one word


def test_the_items_that_a_model_has_read_are_listed(keyed: Keyed) -> None:
    first = create(keyed, "a")
    second = create(keyed, "b", previous_response_id=first.id)

    page = client(keyed).responses.input_items.list(second.id, order="asc", limit=2)

    assert [item.type for item in page.data] == ["message", "message"]
    assert [item.type for item in page] == ["message"] * 3


def test_a_response_with_store_false_is_not_stored(keyed: Keyed) -> None:
    response = create(keyed, store=False)

    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        client(keyed).responses.retrieve(response.id)


def test_a_deleted_response_is_gone(keyed: Keyed) -> None:
    response = create(keyed)
    client(keyed).responses.delete(response.id)

    with pytest.raises(openai.NotFoundError) as refused:
        create(keyed, previous_response_id=response.id)
    assert refused.value.param == "previous_response_id"


@pytest.mark.parametrize("key", ["other", "admin", "local"])
def test_no_other_key_finds_a_response_not_even_an_operators(keyed: Keyed, key: str) -> None:
    response, conversation = create(keyed), client(keyed).conversations.create()

    paths = [f"responses/{response.id}", f"responses/{response.id}/input_items", f"conversations/{conversation.id}"]
    with keyed.client(key) as http:
        answers = [http.get(f"/v1/{path}") for path in paths]
        answers.append(http.delete(f"/v1/responses/{response.id}"))
        answers.append(http.post(f"/v1/responses/{response.id}/cancel"))
        unknown = http.get("/v1/responses/resp_000000000000000000000000")

    assert {answer.status_code for answer in answers} == {404}
    assert answers[0].json()["error"] == {
        **unknown.json()["error"],
        "message": unknown.json()["error"]["message"].replace("resp_000000000000000000000000", response.id),
    }
    assert client(keyed).responses.retrieve(response.id).id == response.id


def test_a_reader_of_redis_sees_no_prompt_no_answer_and_no_key(keyed: Keyed) -> None:
    create(keyed)

    with redis.Redis.from_url(keyed.redis_url) as raw:
        dumps = {key: raw.dump(key) or b"" for key in raw.scan_iter(match="*response*")}

    assert dumps
    for key, dump in dumps.items():
        for secret in (SECRET.encode(), b"one two", keyed.keys["inference"].encode()):
            assert secret not in key + dump


def test_a_stream_is_stored_before_its_end_is_sent(keyed: Keyed) -> None:
    events = [*create(keyed, stream=True)]

    last = events[-1].response
    assert client(keyed).responses.retrieve(last.id).to_dict() == last.to_dict()


def test_a_stream_whose_client_left_is_stored_as_far_as_it_came(keyed: Keyed) -> None:
    stream = create(keyed, model="one/drips", stream=True)
    id, deltas = "", 0
    for event in stream:
        id = event.response.id if event.type == "response.created" else id
        deltas += event.type == "response.output_text.delta"
        if deltas == 3:
            break
    stream.close()

    def cancelled() -> Any:
        try:
            return client(keyed).responses.retrieve(id)
        except openai.NotFoundError:
            return None

    response = eventually(cancelled, what="the response to be stored")
    assert response.status == "cancelled"
    assert len(response.output_text.split()) >= 2


def test_a_response_that_is_deleted_during_its_stream_is_not_stored(keyed: Keyed) -> None:
    id = ""
    for event in create(keyed, stream=True, model="one/slow"):
        if event.type == "response.created":
            id = event.response.id
            with pytest.raises(openai.NotFoundError):
                client(keyed).responses.delete(id)

    with pytest.raises(openai.NotFoundError):
        client(keyed).responses.retrieve(id)


def test_an_item_of_any_stored_response_of_the_key_may_be_referred_to(keyed: Keyed) -> None:
    api: Any = client(keyed)
    first, question = create(keyed, f"{SECRET} two three"), {"role": "user", "content": "and"}
    item = {"type": "item_reference", "id": first.output[0].id}
    whole = api.responses.create(model="one/open", input=[first.output[0].to_dict(), question])

    referring = api.responses.create(model="one/open", input=[item, question])

    assert referring.usage.input_tokens == whole.usage.input_tokens
    other: Any = client(keyed, "other")
    with pytest.raises(openai.BadRequestError, match="no stored response of this key has such an item"):
        other.responses.create(model="two/other", input=[item])


def test_a_path_that_is_not_served_is_no_method_of_a_response(keyed: Keyed) -> None:
    with keyed.client("inference") as http:
        answer = http.post("/v1/responses/compact", json={"model": "one/open", "input": "a"})

    assert (answer.status_code, "unknown path" in answer.json()["error"]["message"]) == (404, True)


@pytest.mark.parametrize("path", ["/v1/responses/resp_x/input_items", "/v1/batches"])
def test_a_parameter_of_the_query_string_that_cannot_be_read_is_named(keyed: Keyed, path: str) -> None:
    with keyed.client("inference") as http:
        answer = http.get(path, params={"limit": "x"})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"].partition(":")[0]) == (400, "limit", "limit")


def test_a_conversation_is_not_deleted_as_a_response(keyed: Keyed) -> None:
    conversation = client(keyed).conversations.create()

    with pytest.raises(openai.NotFoundError):
        client(keyed).responses.delete(conversation.id)
    assert client(keyed).conversations.retrieve(conversation.id).id == conversation.id


def test_a_response_in_the_background_is_polled_to_its_end(keyed: Keyed) -> None:
    begun = create(keyed, background=True)

    def over() -> Any:
        response = client(keyed).responses.retrieve(begun.id)
        return response if response.status == "completed" else None

    assert begun.status == "queued"
    assert eventually(over, what="the response to complete").output_text == "one two three"
    assert create(keyed, "and", previous_response_id=begun.id).status == "completed"


def test_a_response_in_the_background_outlives_the_client_of_its_stream(keyed: Keyed) -> None:
    stream = create(keyed, model="one/slow", background=True, stream=True)
    id = next(iter(stream)).response.id
    stream.close()

    assert client(keyed).responses.retrieve(id).status == "in_progress"

    def over() -> Any:
        response = client(keyed).responses.retrieve(id)
        return response if response.status == "completed" else None

    response = eventually(over, what="the response to complete")
    assert len(response.output_text.split()) == 30


def test_a_response_in_the_background_is_cancelled_through_any_worker(keyed: Keyed) -> None:
    begun = create(keyed, model="one/drips", background=True)
    client(keyed).responses.cancel(begun.id)  # an own connection: of two workers, either may serve it

    response = client(keyed).responses.retrieve(begun.id)
    assert response.status == "cancelled"
    assert client(keyed).responses.cancel(begun.id).status == "cancelled"
    with keyed.client("admin") as http:
        eventually(lambda: not http.get("/admin/requests").json()["requests"], what="no live request")


def test_only_a_response_in_the_background_can_be_cancelled(keyed: Keyed) -> None:
    with pytest.raises(openai.BadRequestError, match="only a response in the background"):
        client(keyed).responses.cancel(create(keyed).id)


def test_a_failure_in_the_background_is_the_responses_own(keyed: Keyed) -> None:
    begun = create(keyed, background=True, model="one/fails")

    def failed() -> Any:
        response = client(keyed).responses.retrieve(begun.id)
        return response if response.status == "failed" else None

    assert eventually(failed, what="the response to fail").error.message


@pytest.mark.long
def test_a_key_at_its_limit_of_responses_in_the_background_is_refused(keyed: Keyed) -> None:
    begun: list[str] = []
    with pytest.raises(openai.RateLimitError, match="in the background"):
        while len(begun) <= 2 * MOST_RUNS:  # of two workers
            begun += [create(keyed, model="one/drips", background=True).id]

    for id in begun:
        client(keyed).responses.cancel(id)


def test_a_conversation_grows_by_each_turn(keyed: Keyed) -> None:
    api = client(keyed)
    conversation = api.conversations.create(items=[{"type": "message", "role": "user", "content": "zero"}])
    first = create(keyed, "one", conversation=conversation.id)
    second = create(keyed, "two", conversation={"id": conversation.id})

    items = [item.type for item in api.conversations.items.list(conversation.id, order="asc")]

    assert first.conversation.id == conversation.id
    assert second.usage.input_tokens - first.usage.input_tokens == 4
    assert items == ["message"] * 5
    api.conversations.delete(conversation.id)
    with pytest.raises(openai.NotFoundError):
        create(keyed, "three", conversation=conversation.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_x", "conversation": "conv_x"}, "previous_response_id"),
        ({"background": True, "store": False}, "background"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
        ({"previous_response_id": "../../etc"}, "previous_response_id"),
    ],
)
def test_a_state_that_cannot_be_continued_is_an_error_with_its_field(
    keyed: Keyed, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client(keyed).responses.create(**{"model": "one/open", "input": "a", **fields})

    assert refused.value.status_code in (400, 404)
    assert json.loads(refused.value.response.text)["error"]["param"] == param


@pytest.mark.long
def test_a_response_whose_router_died_has_failed(tmp_path: Path) -> None:
    with started(tmp_path, workers=1) as running:
        begun = create(running, model="one/drips", background=True)
        running.stack.child("router").kill()

        def failed() -> Any:
            try:
                response = client(running).responses.retrieve(begun.id)
            except openai.APIConnectionError:
                return None
            return response if response.status == "failed" else None

        response = eventually(failed, within_s=LEASE_S + 60, what="the response to fail")
        assert "died" in response.error.message


@pytest.mark.long
def test_without_the_setting_and_without_a_key_nothing_is_stored(tmp_path: Path) -> None:
    (tmp_path / "off").mkdir()
    off = Stack(tmp_path / "off", fake("m", "--answer", "a"))
    try:
        refused = off.http.post("/v1/responses", json={"model": "m", "input": "a", "previous_response_id": "resp_x"})
        unknown = off.http.get("/v1/responses/resp_x")
        plain = off.http.post("/v1/responses", json={"model": "m", "input": "a", "store": True})
    finally:
        off.end()

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "previous_response_id")
    assert unknown.status_code == 404 and "responses_ttl_s" in unknown.json()["error"]["message"]
    assert plain.json()["store"] is False
