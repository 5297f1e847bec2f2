"""Lines, verdicts and results as values."""

import codecs
import json

import pytest

from cortex.router.batches.batch import Form, Problem
from cortex.router.batches.lines import Again, Answer, KeyGone, Line, body_of, check, ending, result, verdict
from tests.router.batches.batches import CHAT, entry, text, value


def checked(content: bytes, most: int = 100, longest: int = 1000) -> tuple[list[Line], list[Problem]]:
    """Check a file's content."""
    at, raw = 0, []
    for line in content.splitlines(keepends=True):
        raw.append((at, line))
        at += len(line)
    return check(raw, CHAT, most, longest)


def test_lines_have_the_numbers_of_an_editor_and_their_offsets() -> None:
    content = text(entry("a"), entry("b")) + b"\n" + text(entry("c"))

    lines, problems = checked(content)

    assert problems == []
    assert [(x.number, x.custom_id, x.model) for x in lines] == [(1, "a", "m"), (2, "b", "m"), (4, "c", "m")]
    assert [json.loads(content[x.at : x.at + x.size])["custom_id"] for x in lines] == ["a", "b", "c"]


@pytest.mark.parametrize("body", [{}, {"model": None}])
def test_a_line_without_a_model_gets_the_answer_of_a_direct_request(body: dict[str, object]) -> None:
    lines, problems = checked(text(entry("a", body=body)))

    assert ([x.model for x in lines], problems) == ([""], [])


def test_a_file_may_begin_with_a_byte_order_mark() -> None:
    content = codecs.BOM_UTF8 + text(entry("a"), entry("b"))

    lines, problems = checked(content)

    assert ([x.custom_id for x in lines], problems) == (["a", "b"], [])
    assert json.loads(body_of(content[: lines[0].size]))["model"] == "m"


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", 0),
        (b"\n\n", "empty_file", 0),
        (b"[]\n", "invalid_json_line", 1),
        (b"\xff\xfe\n", "invalid_json_line", 1),
        (b"{" * 900, "invalid_json_line", 1),
        (text(entry("a"), {"custom_id": "b"}), "invalid_json_line", 2),
        (text(entry("")), "invalid_custom_id", 1),
        (text(entry("x" * 513)), "invalid_custom_id", 1),
        (text(entry("a", method="DELETE")), "invalid_method", 1),
        (text(entry("a", url="/admin/keys")), "invalid_url", 1),
        (text(entry("a", url="/v1/embeddings")), "mismatched_url", 1),
        (text(entry("a", body=[])), "invalid_body", 1),
        (text(entry("a", body={"stream": True})), "stream_in_batch", 1),
        (text(entry("a", body={"model": "m" * 513})), "invalid_model", 1),
        (text(*(entry(str(i), body={"model": str(i)}) for i in range(101))), "too_many_models", 101),
        (text(entry("a"), entry("b"), entry("a")), "duplicate_custom_id", 3),
        (text(entry("a", body={"model": "m" * 1000})), "line_too_long", 1),
        (text(*(entry(str(i)) for i in range(101))), "too_many_lines", 101),
    ],
)
def test_an_invalid_line_is_a_problem_with_its_number(content: bytes, code: str, number: int) -> None:
    _, problems = checked(content, most=101 if code == "too_many_models" else 100)

    assert [(p.code, p.line) for p in problems] == [(code, number)]


def test_half_a_surrogate_pair_is_replaced_as_in_a_direct_request() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x\ud800y"}]}
    content = text({**entry("a"), "body": body}) + text(entry("b\udfff"))

    lines, problems = checked(content)

    assert ([x.custom_id for x in lines], problems) == (["a", "b\ufffd"], [])
    assert json.loads(body_of(content[: lines[0].size]))["messages"][0]["content"] == "x\ufffdy"


def test_problems_of_one_file_are_bounded() -> None:
    _, problems = checked(b"no\n" * 1000, most=5000)

    assert len(problems) == 100


@pytest.mark.parametrize(
    ("answer", "tries", "again"),
    [
        (Answer(status=200, body=b"{}"), 1, None),
        (Answer(status=400, body=b"{}"), 1, None),
        (Answer(status=404, body=b"{}"), 1, None),
        (Answer(status=429, body=b"{}", retry_after_s=7), 9, (7.0, False)),
        (Answer(status=401, body=b"{}"), 9, (1.0, False)),
        (Answer(status=503, body=b"{}"), 9, (1.0, False)),
        (Answer(status=529, body=b"{}"), 9, (1.0, False)),
        (Answer(status=503, body=b"{}", may_retry=False), 1, None),
        (Answer(status=502, body=b"{}"), 2, (1.0, True)),
        (Answer(status=502, body=b"{}"), 3, None),
        (Answer(status=429, body=b"{}", retry_after_s=1e9), 1, (3600.0, False)),
    ],
)
def test_only_a_temporary_failure_is_retried(answer: Answer, tries: int, again: tuple[float, bool] | None) -> None:
    judged = verdict(answer, tries)

    assert (None if judged is None else (judged.pause_s, judged.counts)) == again


def test_a_refused_key_ends_the_batch() -> None:
    with pytest.raises(KeyGone):
        verdict(Answer(status=401, body=b"{}", may_retry=False), 1)


def test_the_reason_for_a_retry_is_the_routers_message() -> None:
    judged = verdict(Answer(status=503, body=b'{"error": {"message": "no room"}}'), 1)

    assert isinstance(judged, Again) and judged.why == "no room"


@pytest.mark.parametrize("status", [429, 502, 503])
def test_the_reason_for_a_retry_quotes_no_worker(status: int) -> None:
    body = b'{"error": {"message": "cannot answer: my secret prompt"}}'

    judged = verdict(Answer(status=status, body=body, from_worker=True), 1)

    assert isinstance(judged, Again) and str(status) in judged.why
    assert "secret" not in judged.why


LINE = Line(3, "id", CHAT, "m", 0, 10)


def test_a_result_of_openai_is_one_line_with_the_workers_status() -> None:
    succeeded, written = result(value(), LINE, Answer(status=200, body=b'{\n "a": 1}', request_id="r"))

    assert succeeded
    assert written.count(b"\n") == 1
    assert json.loads(written)["response"] == {"status_code": 200, "request_id": "r", "body": {"a": 1}}


def test_an_answer_is_written_on_one_line_with_its_numbers_as_they_were() -> None:
    line = Line(1, "a", CHAT, "m", 0, 1)

    _, raw = result(value(), line, Answer(status=200, body=b'{\r\n "seed": 1e2,\n "x": 12345678901234567890123\n}\n'))

    assert raw.count(b"\n") == 1
    assert b'"seed": 1e2,  "x": 12345678901234567890123 }' in raw


def test_a_deeply_nested_answer_has_a_result() -> None:
    line, depths = Line(1, "a", CHAT, "m", 0, 1), range(900, 1100)

    results = [result(value(), line, Answer(status=200, body=b"[" * n + b"]" * n)) for n in depths]

    assert all(raw.endswith(b"}\n") for _, raw in results)


def test_an_answer_that_is_not_json_is_an_error() -> None:
    succeeded, written = result(value(), LINE, Answer(status=200, body=b"<html>"))

    assert not succeeded
    assert json.loads(written)["error"]["code"] == "not_json"


@pytest.mark.parametrize(("code", "kind"), [("cancelled", "canceled"), ("expired", "expired"), ("failed", "errored")])
def test_a_line_that_is_not_sent_has_anthropics_kind_of_result(code: str, kind: str) -> None:
    written = ending(value(form=Form.ANTHROPIC), LINE, code, "why")

    assert json.loads(written)["result"]["type"] == kind
