"""Counting a prompt with its worker: what the worker says goes to the request's client, and nowhere else."""

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from cortex.functions.spec import Engine
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request
from cortex.router.errors import UpstreamBroke
from cortex.router.request.context_window import fitting
from cortex.router.request.tokenizer import Tokenizer
from tests.support.factories import a_function, an_instance

VLLM = a_function("org/model", context=16)
PROMPT = "a private prompt"


class Answer:
    """A worker's answer of one piece."""

    def __init__(self, status: int, body: Any) -> None:
        self.status, self._body = status, json.dumps(body).encode()

    async def whole(self) -> bytes:
        return self._body

    async def error(self) -> bytes:
        return self._body

    def close(self) -> None:
        pass


class Workers:
    """Answers every request alike."""

    def __init__(self, status: int, body: Any) -> None:
        self._answer = Answer(status, body)

    async def post(self, *_: object) -> Answer:
        return self._answer


ANSWERS = [
    (400, {"error": {"message": f"cannot render {PROMPT}"}}),
    (500, {"detail": PROMPT}),
    (200, {"count": PROMPT}),
    (200, {"tokens": PROMPT}),
    (200, PROMPT),
]


@pytest.mark.parametrize(("status", "body"), ANSWERS)
async def test_no_word_of_a_worker_is_in_what_is_noted_of_a_count_that_failed(status: int, body: Any) -> None:
    tokenizer = Tokenizer(Workers(status, body))  # type: ignore[arg-type]

    with pytest.raises(UpstreamBroke) as broke:
        await tokenizer.count(VLLM, an_instance(server="vllm"), b"{}")

    assert PROMPT not in broke.value.message + broke.value.public + str(broke.value)
    assert str(status) in broke.value.message or status == 200
    assert (PROMPT in broke.value.fault().message) is (status != 200)


@pytest.mark.parametrize(("status", "body"), ANSWERS)
async def test_a_prompt_that_was_not_counted_is_logged_without_a_word_of_its_worker(status: int, body: Any) -> None:
    tokenizer = Tokenizer(Workers(status, body))  # type: ignore[arg-type]
    request = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT * 20}]}
    sent = json.dumps(request).encode()
    traits = Traits(context_window=16, on_long_prompt="clamp")
    requests = read_request("chat", sent, traits)
    settle = fitting(tokenizer, VLLM, "chat", requests, sent, traits)
    assert settle is not None

    with capture_logs() as logs:
        assert (await settle(an_instance(server="vllm", context=16))).body == sent

    assert [entry["event"] for entry in logs] == ["prompt_not_counted"]
    assert PROMPT not in repr(logs)


class Tokenizing:
    """A worker whose tokens are words."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []

    async def post(self, _: object, path: str, body: bytes) -> Answer:
        request = json.loads(body)
        self.posted.append((path, request))
        words = str(request.get("prompt") or request.get("content")).split()
        return Answer(200, {"count": len(words), "tokens": words})


@pytest.mark.parametrize(("server", "field"), [("vllm", "prompt"), ("llama-server", "content")])
async def test_the_prompt_of_a_completion_is_counted_without_a_template(server: str, field: str) -> None:
    workers, engine = Tokenizing(), Engine.VLLM if server == "vllm" else Engine.LLAMACPP
    function = a_function("org/model", engine=engine)

    count = await Tokenizer(workers).count(  # type: ignore[arg-type]
        function, an_instance(server=server), b'{"model":"m","prompt":"one two three"}'
    )

    assert count == 3
    assert [(path, request[field]) for path, request in workers.posted] == [("/tokenize", "one two three")]


async def test_a_prompt_of_ids_and_texts_is_not_counted_and_its_worker_decides() -> None:
    sent = b'{"model":"m","max_tokens":9,"prompt":[1,"' + b"two " * 500 + b'"]}'
    request = read_request("completions", sent, Traits(context_window=16))
    settle = fitting(Tokenizer(Tokenizing()), VLLM, "completions", request, sent, Traits(context_window=16))  # type: ignore[arg-type]
    assert settle is not None

    assert (await settle(an_instance(server="vllm", context=16))).body == sent


async def test_the_tokens_of_a_prompt_of_ids_are_counted_without_the_worker() -> None:
    workers = Tokenizing()

    count = await Tokenizer(workers).count(  # type: ignore[arg-type]
        VLLM, an_instance(server="vllm"), b'{"model":"m","prompt":[1,2]}'
    )

    assert (count, workers.posted) == (2, [])
