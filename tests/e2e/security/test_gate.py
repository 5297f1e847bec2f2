"""The gate at every endpoint: media addresses, fields for operators, and the list of dropped fields."""

from typing import Any

import pytest

from tests.e2e.security.keyed import Keyed

pytestmark = pytest.mark.xdist_group("security")

A = "http://192.0.2.1/inside"
HELLO = [{"role": "user", "content": "Hello!"}]
HOLDS_AN_ENGINE = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^((a?){0,40}){0,40}$"}},
}
SHOWN = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": A}}]}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": SHOWN}),
        ("/v1/chat/completions", {"messages": HELLO, "grammar": 'root ::= "a"'}),
        ("/v1/chat/completions", {"messages": HELLO, "response_format": HOLDS_AN_ENGINE}),
        ("/v1/completions", {"prompt": "x", "prompt_embeds": "aaaa"}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": A}]}]}),
        (
            "/v1/messages",
            {
                "max_tokens": 4,
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": A}}]},
                ],
            },
        ),
        ("/v1/rerank", {"query": "x", "documents": [{"content": SHOWN[0]["content"]}]}),
    ],
)
def test_an_address_grammar_or_costly_schema_is_rejected_at_every_endpoint(
    keyed: Keyed, path: str, body: dict[str, Any]
) -> None:
    with keyed.client("inference") as http:
        answer = http.post(path, json={"model": "one/open", **body})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_fields_for_operators_are_dropped_and_listed(keyed: Keyed) -> None:
    body = {"model": "mine", "messages": HELLO, "id_slot": 0, "chat_template_kwargs": {"tokenize": False}}

    with keyed.client("inference") as http:
        plain = http.post("/v1/chat/completions", json=body)
        streamed = http.post("/v1/chat/completions", json={**body, "stream": True})
        plain_request = http.post("/v1/chat/completions", json={"model": "mine", "messages": HELLO, "temperature": 0})

    assert plain.status_code == streamed.status_code == 200
    assert plain.headers["x-cortex-dropped"] == "chat_template_kwargs.tokenize, id_slot"
    assert streamed.headers["x-cortex-dropped"] == plain.headers["x-cortex-dropped"]
    assert "x-cortex-dropped" not in plain_request.headers


def test_a_body_with_too_many_objects_is_rejected_before_it_is_decoded(keyed: Keyed) -> None:
    tools = b",".join([b"{}"] * 1_000_000)
    body = b'{"model":"one/open","messages":[{"role":"user","content":"x"}],"tools":[' + tools + b"]}"

    with keyed.client("inference") as http:
        answer = http.post("/v1/chat/completions", content=body)

    assert answer.status_code == 400
    assert "100000 objects" in answer.json()["error"]["message"]
