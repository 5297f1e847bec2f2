"""Answers of the fake engine, through real sockets and the OpenAI SDK."""

import openai
import pytest

from cortex.platform.fake_engine.shapes import SHAPES
from tests.platform.fake_engine.workers import HELLO, MODEL, Worker, chunks


def test_an_answer_starts_with_the_models_name_and_reports_its_tokens(worker: Worker) -> None:
    answer = worker.openai.chat.completions.create(model=MODEL, messages=HELLO)

    content = answer.choices[0].message.content
    assert content is not None and answer.usage is not None
    assert content.split()[0] == answer.model == MODEL
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, len(content.split())) == (2, 16)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_streamed_and_an_unstreamed_answer_are_equal(worker: Worker, shape: str) -> None:
    worker.script(shape=shape, reasoning_tokens=3)
    whole = worker.openai.chat.completions.create(model=MODEL, messages=HELLO)
    with worker.openai.chat.completions.stream(
        model=MODEL, messages=HELLO, stream_options={"include_usage": True}
    ) as stream:
        streamed = stream.get_final_completion()

    assert streamed.id == whole.id
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert streamed.usage is not None and whole.usage is not None
    assert streamed.usage.total_tokens == whole.usage.total_tokens == 2 + 3 + 16


def test_equal_requests_get_equal_bytes_and_others_do_not(worker: Worker) -> None:
    first, again = worker.ask(), worker.ask()
    other = worker.ask(messages=[{"role": "user", "content": "goodbye"}])

    assert first.content == again.content
    assert first.json()["choices"][0]["message"]["content"] != other.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_limit_truncates_the_answer_with_finish_reason_length(worker: Worker, shape: str, limit: str) -> None:
    worker.script(shape=shape)
    whole = worker.ask(**{limit: 4}).json()
    last = chunks(worker.ask(**{limit: 4}, stream=True))[-1]

    assert whole["usage"]["completion_tokens"] == 4
    assert whole["choices"][0]["finish_reason"] == last["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_ends_with_usage_only_on_request(worker: Worker, shape: str) -> None:
    worker.script(shape=shape)
    without = chunks(worker.ask(stream=True))
    future = chunks(worker.ask(stream=True, stream_options={"include_usage": True}))

    assert all("usage" not in chunk and chunk["choices"] for chunk in without)
    assert future[-1]["choices"] == []
    assert future[-1]["usage"]["completion_tokens"] == 16


def test_a_scripted_answer_is_sent_unchanged(worker: Worker) -> None:
    text = "  Grüße,\n\n\tWelt 🌍 "
    worker.script(answer=text)
    with worker.openai.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        streamed = stream.get_final_completion()

    assert streamed.choices[0].message.content == text


def test_an_echo_repeats_the_last_user_message(worker: Worker) -> None:
    worker.script(echo=True)
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "and last"}, {"type": "image_url"}]},
    ]

    assert worker.ask(messages=messages).json()["choices"][0]["message"]["content"] == "and last"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_streamed_and_an_unstreamed_completion_are_equal(worker: Worker, shape: str) -> None:
    worker.script(shape=shape)
    whole = worker.openai.completions.create(model=MODEL, prompt="once upon", max_tokens=5)
    stream = worker.openai.completions.create(model=MODEL, prompt="once upon", max_tokens=5, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    assert whole.choices[0].text == streamed
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.prompt_tokens == 2


def test_embeddings_have_equal_numbers_in_both_encodings(worker: Worker) -> None:
    texts = ["a b", "c"]
    floats = worker.openai.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    packed = worker.openai.embeddings.create(model=MODEL, input=texts)
    wide = worker.openai.embeddings.create(model=MODEL, input=[1, 2, 3], dimensions=32)

    assert [item.embedding for item in floats.data] == [item.embedding for item in packed.data]
    assert floats.data[0].embedding != floats.data[1].embedding
    assert (floats.usage.prompt_tokens, len(wide.data), len(wide.data[0].embedding)) == (3, 1, 32)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_list_has_the_model_or_the_scripted_wrong_one(worker: Worker, shape: str) -> None:
    worker.script(shape=shape)
    right = [model.id for model in worker.openai.models.list()]
    worker.script(wrong_model="impostor")
    wrong = [model.id for model in worker.openai.models.list()]

    assert (right, wrong) == ([MODEL], ["impostor"])


def test_tokenize_counts_as_many_tokens_as_usage_reports(worker: Worker) -> None:
    messages = [{"role": "system", "content": "be kind"}, *HELLO]
    tools = [{"type": "function", "function": {"name": "look"}}]
    counted = worker.http.post("/tokenize", json={"messages": messages, "tools": tools}).json()
    used = worker.ask(messages=messages, tools=tools).json()["usage"]
    prompt = worker.http.post("/tokenize", json={"prompt": "be kind be"}).json()

    assert counted["count"] == len(counted["tokens"]) == used["prompt_tokens"]
    assert prompt["count"] == 3
    assert prompt["tokens"][0] == prompt["tokens"][2] != prompt["tokens"][1]


def test_with_check_model_another_model_is_not_found(worker: Worker) -> None:
    worker.script(check_model=True)

    with pytest.raises(openai.NotFoundError) as error_info:
        worker.openai.chat.completions.create(model="other", messages=HELLO)
    assert error_info.value.code == "model_not_found"
    assert worker.ask().status_code == 200
