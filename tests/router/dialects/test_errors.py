"""Faults: the table of errors, in every dialect, and as the SDKs read it; and what workers mean by theirs."""

import json
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core import chunks, errors
from cortex.router.dialects.core.errors import Dialect, Fault, Kind, envelope
from cortex.router.dialects.core.worker_errors import engine_died, fault_from_worker, first_error
from tests.router.dialects import clients
from tests.router.dialects.examples import examples

TABLE: list[tuple[Kind, int, str, int, str, str | None]] = [
    (Kind.BAD_REQUEST, 400, "invalid_request_error", 400, "invalid_request_error", None),
    (Kind.UNSUPPORTED, 400, "invalid_request_error", 400, "invalid_request_error", "unsupported_parameter"),
    (Kind.PROMPT_TOO_LONG, 400, "invalid_request_error", 400, "invalid_request_error", "context_length_exceeded"),
    (Kind.NO_KEY, 401, "authentication_error", 401, "invalid_request_error", "invalid_api_key"),
    (Kind.FORBIDDEN, 403, "permission_error", 403, "invalid_request_error", None),
    (Kind.UNKNOWN_MODEL, 404, "not_found_error", 404, "invalid_request_error", "model_not_found"),
    (Kind.UNKNOWN_PATH, 404, "not_found_error", 404, "invalid_request_error", None),
    (Kind.WRONG_METHOD, 405, "invalid_request_error", 405, "invalid_request_error", None),
    (Kind.BODY_TOO_BIG, 413, "request_too_large", 413, "invalid_request_error", None),
    (Kind.RATE_LIMITED, 429, "rate_limit_error", 429, "rate_limit_error", "rate_limit_exceeded"),
    (Kind.LOADING, 529, "overloaded_error", 503, "server_error", "model_loading"),
    (Kind.WORKER_ERROR, 502, "api_error", 502, "server_error", "worker_error"),
    (Kind.INTERNAL, 500, "api_error", 500, "server_error", "worker_error"),
    (Kind.TIMEOUT, 504, "timeout_error", 504, "server_error", "timeout"),
]


@pytest.mark.parametrize(
    ("kind", "status", "type_", "openai_status", "openai_type", "code"), TABLE, ids=[row[0] for row in TABLE]
)
def test_case_61_the_envelope_is_that_of_the_path_the_client_called(
    kind: Kind, status: int, type_: str, openai_status: int, openai_type: str, code: str | None
) -> None:
    fault = Fault(kind=kind, message="why", param="x")

    assert fault.status("messages") == status
    assert json.loads(envelope(fault, "messages", "req_1")) == {
        "type": "error",
        "error": {"type": type_, "message": "why"},
        "request_id": "req_1",
    }
    for dialect in ("chat", "completions", "embeddings", "rerank", "responses"):
        assert fault.status(dialect) == openai_status
        assert json.loads(envelope(fault, dialect)) == {
            "error": {"message": "why", "type": openai_type, "param": "x", "code": code}
        }


def test_case_61_every_kind_of_fault_has_a_row() -> None:
    for kind in Kind:
        fault = Fault(kind=kind, message="why")

        assert 400 <= fault.status("chat") < 600
        assert fault.failed_code
        assert envelope(fault, "messages")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.BAD_REQUEST, anthropic.BadRequestError),
        (Kind.NO_KEY, anthropic.AuthenticationError),
        (Kind.UNKNOWN_MODEL, anthropic.NotFoundError),
        (Kind.RATE_LIMITED, anthropic.RateLimitError),
        (Kind.LOADING, anthropic.InternalServerError),
        (Kind.TIMEOUT, anthropic.InternalServerError),
    ],
)
def test_case_61_the_anthropic_sdk_raises_the_class_that_is_meant(kind: Kind, expected: type[Exception]) -> None:
    fault = Fault(kind=kind, message="why")

    with pytest.raises(expected, match="why"):
        clients.anthropic_plain(envelope(fault, "messages"), fault.status("messages"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.BAD_REQUEST, openai.BadRequestError),
        (Kind.NO_KEY, openai.AuthenticationError),
        (Kind.UNKNOWN_MODEL, openai.NotFoundError),
        (Kind.RATE_LIMITED, openai.RateLimitError),
        (Kind.LOADING, openai.InternalServerError),
    ],
)
def test_case_61_the_openai_sdk_raises_the_class_that_is_meant(kind: Kind, expected: type[Exception]) -> None:
    fault = Fault(kind=kind, message="why")

    with pytest.raises(expected, match="why"):
        clients.chat_plain(envelope(fault, "chat"), fault.status("chat"))


def test_retry_headers_are_sent_only_where_a_retry_helps() -> None:
    assert Fault(kind=Kind.LOADING, message="", retry_after_s=4.2).headers() == {"retry-after": "5"}
    assert Fault(kind=Kind.CRASH_LOOPING, message="", retry_after_s=4).headers() == {"x-should-retry": "false"}
    assert Fault(kind=Kind.BAD_REQUEST, message="").headers() == {}


def worker(error: Any, status: int = 400) -> Fault:
    return fault_from_worker(status, json.dumps(error).encode())


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (
            {"error": {"message": "bad top_p", "type": "BadRequestError", "param": "top_p", "code": 400}},
            400,
            Kind.BAD_REQUEST,
            "bad top_p",
        ),
        (
            {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400},
            400,
            Kind.BAD_REQUEST,
            "bad",
        ),
        (
            {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
            503,
            Kind.LOADING,
            "Loading model",
        ),
        ({"error": {"code": 501, "message": "no", "type": "not_supported_error"}}, 501, Kind.UNSUPPORTED, "no"),
        (
            {"error": {"code": 401, "message": "key", "type": "authentication_error"}},
            401,
            Kind.FORBIDDEN,
            "the worker refused this request (401): key",
        ),
        (
            {"error": {"message": "The model `x` does not exist.", "code": 404}},
            404,
            Kind.WORKER_ERROR,
            "The model `x` does not exist.",
        ),
        ({"detail": "Not you"}, 403, Kind.FORBIDDEN, "the worker refused this request (403): Not you"),
        ({}, 307, Kind.WORKER_ERROR, "the worker answered with a redirect (307); cortex does not follow redirects"),
        ({"error": {"message": "\x1b[1mno\0"}}, 400, Kind.BAD_REQUEST, "no\ufffd"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too big"}]}, 422, Kind.BAD_REQUEST, "n: too big"),
        ({"error": "plain words"}, 500, Kind.WORKER_ERROR, "plain words"),
        ({"error": {"message": "full"}}, 429, Kind.RATE_LIMITED, "full"),
        ({"error": {"message": "slow"}}, 504, Kind.TIMEOUT, "slow"),
        ({}, 500, Kind.WORKER_ERROR, "the worker answered 500 without a message"),
        ("Internal Server Error", 500, Kind.WORKER_ERROR, "the worker answered 500 without a message"),
    ],
)
def test_a_workers_error_maps_to_a_kind_and_its_message(body: Any, status: int, kind: Kind, message: str) -> None:
    fault = worker(body, status)

    assert (fault.kind, fault.message) == (kind, message)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"detail": [{"loc": ["body", "voice"], "msg": "no such voice"}]}, "voice"),
        ({"detail": [{"loc": ["body"], "msg": "no such voice"}]}, None),
        ({"detail": [{"loc": "voice", "msg": "no such voice"}]}, None),
        ({"detail": ["no such voice"]}, None),
        ({"detail": "no such voice"}, None),
        ({"error": {"message": "no such voice", "param": "voice"}}, "voice"),
    ],
)
def test_the_field_that_a_worker_refuses_is_named(body: Any, param: str | None) -> None:
    assert worker(body, 422).param == param


def test_seed_defect_a_workers_error_that_is_no_json_keeps_its_words_and_retry_after_its_number() -> None:
    fault = fault_from_worker(503, b"upstream \xff busy", "17")

    assert fault.message == "upstream \ufffd busy"
    assert fault.headers() == {"retry-after": "17"}


OVERFLOW = {"type": "exceed_context_size_error", "message": "x", "n_prompt_tokens": 40000, "n_ctx": 32768}
WINDOW = "This model's maximum context length is 32768 tokens"


@pytest.mark.parametrize(
    "error",
    [
        OVERFLOW,
        {"message": "The decoder prompt (length 40000) is longer than the maximum model length of 32768. Make"},
        {"message": f"{WINDOW}. However, your request has 40000 input tokens. Please reduce"},
        {"message": "the request (40000 tokens) exceeds the available context size (32768 tokens), try"},
        {"message": "Requested tokens (40000) exceed context window of 32768"},
        {"message": f"'max_tokens' is too large: 10. {WINDOW} and your request has 40000 input tokens (10 > 3)."},
    ],
)
def test_case_20_a_too_long_prompt_gives_the_text_that_claude_code_parses(error: Any) -> None:
    fault = worker({"error": error})

    assert fault.kind is Kind.PROMPT_TOO_LONG
    assert fault.message == "prompt is too long: 40000 tokens > 32768 maximum"


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 32768"
        " tokens and your request has 20000 input tokens (32000 > 32768 - 20000).",
        "This model's maximum context length is 32768 tokens. However, you requested 52000 tokens (20000 in the"
        " messages, 32000 in the completion). Please reduce the length of the messages or completion.",
        "You passed 20000 input tokens and requested 32000 output tokens. However, the model's context length is"
        " only 32768 tokens, resulting in a maximum input length of 768 tokens.",
        "This model's maximum context length is 32768 tokens. However, you requested 32000 output tokens and your"
        " prompt contains at least 20000 input tokens, for a total of at least 52000 tokens.",
    ],
)
def test_case_20_a_too_large_limit_gives_the_text_that_claude_code_parses(message: str) -> None:
    fault = worker({"error": {"message": message, "code": 400}})

    assert fault == errors.max_tokens_too_large(20000, 32000, 32768)


DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@pytest.mark.parametrize(
    ("message", "died"),
    [
        (DEAD, True),
        ("EngineDeadError: the engine is gone", True),
        ("Background loop has errored already.", True),
        ("the prompt quotes EngineDeadError", False),
        ("CUDA out of memory", False),
        ("", False),
    ],
)
def test_a_dead_engine_is_recognised_by_the_start_of_its_error(message: str, died: bool) -> None:
    assert engine_died(message) is died


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (b'data: {"error": {"message": "%b", "code": 500}}\n\ndata: [DONE]\n\n' % DEAD.encode(), DEAD),
        (b'event: error\ndata: {"type": "error", "error": {"message": "no"}}', "no"),
        (b'data: {"choices": [{"delta": {"content": "\\"error\\": {}"}}]}\n\n', None),
        (b'data: {"choices": []}\n\ndata: {"error": {"message": "later"}}\n\n', None),
        (b'data: {"error": null}\n\n', None),
        (b'data: {"error": {"mess', None),
        (b'"error"', None),
        (b"", None),
    ],
)
def test_an_error_at_the_start_of_a_stream_is_found(piece: bytes, message: str | None) -> None:
    fault = first_error(piece)

    assert (fault and fault.message) == message


def test_a_workers_retry_after_is_capped_at_an_hour() -> None:
    assert fault_from_worker(429, b"", "999999").retry_after_s == 3600


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "msg", "loc", "code", "type", "param", "n_ctx", "n_prompt_tokens"]
            ),
            inner,
            max_size=5,
        )
    ),
)


@examples(60)
@given(st.integers(300, 600), JSON.map(lambda value: json.dumps(value).encode()) | st.binary(), st.none() | st.text())
def test_any_error_body_of_a_worker_gives_a_fault(status: int, body: bytes, retry_after: str | None) -> None:
    fault = fault_from_worker(status, body, retry_after)

    dialects: tuple[Dialect, ...] = ("messages", "chat")
    for dialect in dialects:
        assert envelope(fault, dialect)
        assert fault.headers() is not None


@pytest.mark.parametrize(("usage", "count"), [(None, 0), (-5, 0), (7, 7), (10**30, chunks.MOST_TOKENS)])
def test_a_workers_token_counts_are_bounded(usage: int | None, count: int) -> None:
    tokens = chunks.tokens(chunks.Usage(prompt_tokens=usage, completion_tokens=usage))

    assert (tokens.input, tokens.output) == (count, count)
