"""Forms, requests and answers of media: what passes on, and what is refused."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multipart import MultipartSegment, PushMultipartParser

from cortex.functions.passing import passing
from cortex.router.dialects.core.chunks import Tokens
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Fault, Kind
from cortex.router.dialects.media.answer import Reply
from cortex.router.dialects.media.bounds import check, check_text
from cortex.router.dialects.media.form import MAX_PARTS, MAX_PREAMBLE, MAX_TEXTS, Form, boundary_of
from cortex.router.dialects.media.request import read_images, read_speech

OWN = b"own"
PASSING = passing("openai", "transcriptions")


def part(name: str, value: bytes, filename: str | None = None, *headers: str) -> bytes:
    disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    lines = "\r\n".join([f"--b\r\nContent-Disposition: {disposition}", *headers, "", ""])
    return lines.encode() + value + b"\r\n"


def whole(*parts: bytes) -> bytes:
    return b"".join((*parts, b"--b--\r\n"))


def sent(pieces: Sequence[bytes], *, begin_after: int = 0) -> list[tuple[str, str | None, str | None, bytes]]:
    """Feed a form, and return the parts that the worker gets: name, file name, type and value. The worker's form begins
    after so many pieces, or later if the model is not known then."""
    form = Form("transcriptions", b"b", OWN)
    held, head, rest = b"", b"", b""
    for number, piece in enumerate(pieces):
        out = form.feed(piece)
        if head:
            rest += out
            continue
        held += out
        if form.model and number >= begin_after:
            head = form.head("worker/name", PASSING)
    end = form.close()
    return parsed((head or form.head("worker/name", PASSING)) + held + rest + end)


def parsed(data: bytes) -> list[tuple[str, str | None, str | None, bytes]]:
    """Read a form as an independent reader does, strictly."""
    parts: list[tuple[str, str | None, str | None, bytes]] = []
    parser = PushMultipartParser(OWN, strict=True)
    for event in parser.parse(data.removesuffix(b"\r\n")):
        if isinstance(event, MultipartSegment):
            parts.append((event.name or "", event.filename, event.content_type, b""))
        elif event is not None:
            parts[-1] = (*parts[-1][:3], parts[-1][3] + bytes(event))
    parser.close()
    return parts


FILE = part("file", b"\r\n--c\r\nRIFF\0", "../a b.wav", "Content-Type: audio/wav")
FORM = whole(
    part("language", b"en"), part("model", b"mine"), FILE, part("include[]", b"logprobs"), part("unknown", b"x")
)
PARTS = {
    ("model", None, None, b"worker/name"),
    ("language", None, None, b"en"),
    ("include[]", None, None, b"logprobs"),
    ("file", "a_b.wav", "audio/wav", b"\r\n--c\r\nRIFF\0"),
}


@given(st.lists(st.integers(0, len(FORM)), max_size=12), st.integers(0, 12))
def test_a_form_is_the_same_wherever_it_is_split_and_whenever_its_head_is_sent(cuts: list[int], begin: int) -> None:
    edges = [0, *sorted(cuts), len(FORM)]
    pieces = [FORM[a:b] for a, b in pairwise(edges)]

    parts = sent(pieces, begin_after=begin)

    assert parts[0][0] == "model"
    assert set(parts) == PARTS
    assert len(parts) == len(PARTS)


def test_a_file_may_come_before_the_model() -> None:
    parts = sent([whole(FILE, part("model", b"mine"), part("language", b"en"))])

    assert [name for name, *_ in parts] == ["model", "language", "file"]


def test_a_head_for_another_function_has_its_name_and_its_fields() -> None:
    form = Form("transcriptions", b"b", OWN)
    form.feed(whole(part("model", b"mine"), part("top_p", b"0.5")))

    first, second = form.head("one", PASSING), form.head("two", passing("vllm", "transcriptions"))

    assert b"one" in first
    assert b"top_p" not in first
    assert b"two" in second
    assert b"top_p" in second
    assert form.dropped == ()


def test_a_field_that_changes_the_answer_is_refused_not_dropped() -> None:
    form = Form("transcriptions", b"b", OWN)
    form.feed(whole(part("model", b"mine"), part("grammar", b"x")))

    with pytest.raises(BadRequest, match="grammar"):
        form.head("one", PASSING)


@pytest.mark.parametrize("name", ['x"; filename="y', "a\r\nb", "ä", "X", "a[b", ""])
def test_a_strange_name_of_a_field_reaches_no_worker(name: str) -> None:
    form = Form("transcriptions", b"b", OWN)
    try:
        data = form.feed(whole(part("model", b"mine"), part(name, b"v"), FILE))
    except BadRequest:
        return

    assert {p[0] for p in parsed(form.head("m", PASSING) + data + form.close())} == {"model", "file"}


@pytest.mark.parametrize(
    "sent_name", ["/etc/passwd", "..", "a\\b\\c.wav", "x" * 500, "%0d%0aX: y", '"; name=\\"model', "\u202egpj.wav", ""]
)
def test_a_file_name_reaches_no_worker_as_a_path_or_a_header(sent_name: str) -> None:
    form = Form("transcriptions", b"b", OWN)

    out = form.feed(part("model", b"m") + part("file", b"x", sent_name))

    line = out.split(b"\r\n")[1].decode()
    name = line.removeprefix('Content-Disposition: form-data; name="file"; filename="').removesuffix('"')
    assert 0 < len(name) <= 100
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not name.startswith(".")


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (MAX_PREAMBLE + 1),
        whole(part("prompt", b"x" * (MAX_TEXTS + 1))),
        b"".join(part("x[]", b"") for _ in range(MAX_PARTS + 1)),
        b"--b\r\n" + b"A: b\r\n" * 20,
        b"--b\r\nA: " + b"x" * 100_000,
        b"--b\r\nContent-Disposition: attachment\r\n\r\n",
        b"--b\r\n\r\n",
        b"--b" + b"X" * 10,
    ],
)
def test_a_form_over_a_bound_is_refused_while_it_is_read(data: bytes) -> None:
    with pytest.raises(BadRequest):
        Form("transcriptions", b"b", OWN).feed(data)


def test_what_follows_the_last_boundary_is_ignored() -> None:
    form = Form("transcriptions", b"b", OWN)
    form.feed(whole(part("model", b"mine"), FILE) + b"--b\r\nmore")
    form.feed(b"still more")

    form.close()


@pytest.mark.parametrize("boundary", [b'boundary="a b"', b"boundary=abc; charset=utf-8"])
def test_a_boundary_may_be_quoted_and_followed(boundary: bytes) -> None:
    assert boundary_of(f"Multipart/Form-Data; {boundary.decode()}") in (b"a b", b"abc")


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "9" * 5000, "-1", "3"])
def test_a_number_out_of_bounds_is_refused(value: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_text("temperature", value)

    assert refused.value.param == "temperature"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", True),
        ("n", 1.5),
        ("n", 0),
        ("stream", "yes"),
        ("size", "0x5"),
        ("size", "5000x1"),
        ("size", 5),
        ("quality", {}),
        ("instructions", 5),
        ("language", ["en"]),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        check(name, value)

    assert refused.value.param == name


@pytest.mark.parametrize(("name", "value"), [("size", "auto"), ("size", "4096x4096"), ("n", None), ("speed", 1.5)])
def test_a_usual_value_passes(name: str, value: object) -> None:
    check(name, value)


def test_requests_in_json_pass_on_with_the_workers_name() -> None:
    speech = read_speech(b'{"model":"m","input":"h\xc3\xa9","voice":{"id":"v"},"speed":1.5,"x":1}')
    images = read_images(b'{"model":"m","prompt":"p","n":3,"seed":5}', passing("openai", "images"))

    assert msgspec.json.decode(bytes(speech.body("w"))) == {
        "model": "w",
        "input": "hé",
        "voice": {"id": "v"},
        "speed": 1.5,
    }
    assert (speech.characters, speech.dropped) == (2, ("x",))
    assert images.answers == 3


def test_the_usage_of_a_whole_answer_is_read() -> None:
    audio = Reply("transcriptions").plain(b'{"text":"x","duration":"2.5"}')
    other = Reply("transcriptions").plain(b'{"text":"x","usage":{"type":"duration","seconds":3}}')
    images = Reply("images").plain(b'{"data":[{},{}],"usage":{"input_tokens":4,"output_tokens":5}}')

    assert audio.tokens == Tokens(audio_s=2.5)
    assert other.tokens == Tokens(audio_s=3.0)
    assert images.tokens == Tokens(input=4, output=5, images=2)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error":{"message":"no"}}', b'{"duration":1e999}x'])
def test_an_answer_that_cannot_be_read_is_an_error(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        Reply("transcriptions").plain(body)


@pytest.mark.parametrize("seconds", ["-5", "NaN", "1e300", '"x"', '"nan"'])
def test_an_absurd_duration_stays_within_bounds(seconds: str) -> None:
    tokens = Reply("transcriptions").plain(b'{"text":"x","duration":%b}' % seconds.encode()).tokens

    assert 0 <= tokens.audio_s <= 1e7


EVENTS = (
    b'data: {"type":"transcript.text.delta","delta":"one"}\n\n'
    b'data: {"type":"transcript.text.done","usage":{"type":"duration","seconds":7}}\r\n\r\n'
)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_events_pass_unchanged_and_their_usage_is_read_wherever_they_are_split(cuts: list[int]) -> None:
    stream = Reply("transcriptions").stream("text/event-stream; charset=utf-8")
    edges = [0, *sorted(cuts), len(EVENTS)]
    assert stream is not None

    out = b"".join(stream.feed(EVENTS[a:b]) for a, b in pairwise(edges))

    assert out + stream.close() == EVENTS
    assert stream.tokens.audio_s == 7


def test_an_event_without_end_costs_no_memory() -> None:
    stream = Reply("images").stream("text/event-stream")
    assert stream is not None

    for _ in range(100):
        stream.feed(b"x" * 65536)

    assert len(stream._line) <= 256 * 1024


@pytest.mark.parametrize(
    ("content_type", "public"),
    [
        ("audio/mpeg", b"audio/mpeg"),
        ("Audio/Wav; rate=16000", b"audio/wav; rate=16000"),
        ("text/plain; charset=utf-8", b"text/plain; charset=utf-8"),
        ("text/html", b"application/octet-stream"),
        ("image/svg+xml", b"application/octet-stream"),
        ("audio/x\r\nset-cookie: a", b"application/octet-stream"),
        ("audio/mpeg; x=\r\ny", b"audio/mpeg"),
        ("", b"application/octet-stream"),
    ],
)
def test_a_content_type_that_a_browser_executes_is_replaced(content_type: str, public: bytes) -> None:
    stream = Reply("speech").stream(content_type)

    assert stream is not None
    assert stream.media_type == public


def test_only_a_stream_of_events_reports_a_failure() -> None:
    events, sound = Reply("speech").stream("text/event-stream"), Reply("speech").stream("audio/wav")
    assert events is not None
    assert sound is not None
    fault = Fault(kind=Kind.WORKER_ERROR, message="it broke")

    assert b"it broke" in events.fail(fault)
    assert sound.fail(fault) == b""
    assert (events.tells_errors, sound.tells_errors) == (True, False)
    assert sound.feed(b"x") == b""


@pytest.mark.parametrize("value", [b"1" + b" " * 40 + b"x", b"1" * 41, b"one", b"0.5"])
def test_a_field_of_a_form_that_is_not_a_number_is_refused(value: bytes) -> None:
    form = Form("image_edits", b"b", OWN)

    with pytest.raises(BadRequest) as refused:
        form.feed(whole(part("model", b"mine"), part("n", value)))

    assert refused.value.param == "n"


def test_a_list_does_not_lower_the_number_of_answers_of_a_form() -> None:
    form = Form("image_edits", b"b", OWN)

    form.feed(whole(part("model", b"mine"), part("n", b"5"), part("n[]", b"1")))

    assert form.answers == 5
