"""Audio and images through the router, by OpenAI's own SDK and byte by byte, to the fake engine."""

import base64
import io
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cortex.platform.keys import host_token, worker_key
from tests.e2e.workers import EMPTY
from tests.support.catalogues import aliases, fake
from tests.support.stack import Stack, eventually

pytestmark = EMPTY

MIB = 1024 * 1024
LARGE_MB = 200
AUDIO = b"RIFF" + bytes(range(256)) * 250
SECONDS = round(len(AUDIO) / 32_000, 3)
"""As the fake engine counts."""
CATALOGUE = "\n".join(
    [
        fake("hears", "--answer", "one two three", task="transcribe"),
        fake("hears/waits", "--ttft-s", "60", task="transcribe"),
        fake("hears/loads", "--load-s", "600", task="transcribe"),
        fake("hears/refuses", "--refuse", task="transcribe"),
        fake("speaks", task="speech"),
        fake("speaks/breaks", "--cut-stream-after", "2", "--tps", "50", task="speech"),
        fake("draws", task="image"),
        fake("chats"),
        fake("counts/hears", task="transcribe"),
        fake("counts/speaks", task="speech"),
        fake("counts/draws", task="image"),
        aliases({"whisper-1": "hears", "tts-1": "speaks", "gpt-image-1": "draws"}),
    ]
)


@pytest.fixture(scope="module")
def media(empty_stack: Stack) -> Stack:
    empty_stack.serve(CATALOGUE)
    return empty_stack


@pytest.fixture(scope="module")
def client(media: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{media.url}/v1", api_key="none", max_retries=0)


def of_worker(stack: Stack, function: str) -> dict[str, Any]:
    """Return what a function's only worker says of its requests."""
    instance = stack.instance(function)
    token = (stack.folder / "state" / "cortex" / "fleet.token").read_text().strip()
    key = worker_key(host_token(token, "here"), instance["id"])
    answer = httpx.get(f"{instance['url']}/fake", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    return dict(answer.json())


def form(model: str, *, file_first: bool = False, size: int = 0) -> bytes:
    """Return the beginning of a form up to and into its file."""
    named = f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return (file if file_first else named + file).encode() + b"x" * size


def post(stack: Stack, body: bytes, path: str = "/v1/audio/transcriptions", **headers: str) -> httpx.Response:
    """Send a form as it is."""
    headers = {"content-type": "multipart/form-data; boundary=b"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return stack.http.post(path, content=body, headers=headers)


def start_of_request(length: int) -> bytes:
    head = [
        "POST /v1/audio/transcriptions HTTP/1.1",
        "Host: localhost",
        "Content-Type: multipart/form-data; boundary=b",
    ]
    return "\r\n".join([*head, f"Content-Length: {length}", "", ""]).encode()


# Transcriptions.


def test_a_file_is_transcribed_by_an_alias(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", AUDIO, "audio/wav"), language="en")

    assert answer.text == "one two three"
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == SECONDS


def test_a_file_is_translated(client: openai.OpenAI) -> None:
    answer = client.audio.translations.create(model="hears", file=("a.wav", AUDIO))

    assert answer.text == "one two three"


@pytest.mark.parametrize(
    ("wanted", "content_type"),
    [("text", "text/plain; charset=utf-8"), ("srt", "application/x-subrip"), ("vtt", "text/vtt")],
)
def test_a_transcription_comes_in_the_format_that_the_client_wants(
    client: openai.OpenAI, wanted: Any, content_type: str
) -> None:
    answer = client.audio.transcriptions.with_raw_response.create(
        model="hears", file=("a.wav", AUDIO), response_format=wanted
    )

    assert "one two three" in str(answer.text)
    assert answer.headers["content-type"] == content_type


def test_a_verbose_transcription_has_its_segments(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="hears", file=("a.wav", AUDIO), response_format="verbose_json", timestamp_granularities=["segment"]
    )

    assert answer.duration == SECONDS
    assert [segment.text for segment in answer.segments or ()] == ["one two three"]


def test_a_streamed_transcription_comes_as_the_workers_events(client: openai.OpenAI) -> None:
    events = list(client.audio.transcriptions.create(model="hears", file=("a.wav", AUDIO), stream=True))

    assert [e.type for e in events] == [*["transcript.text.delta"] * 3, "transcript.text.done"]
    assert getattr(events[-1], "text", "") == "one two three"


@pytest.mark.parametrize("file_first", [False, True], ids=["model first", "file first"])
def test_a_large_upload_passes_without_being_held_in_memory(media: Stack, file_first: bool) -> None:
    """The file that comes before `model` is held in a file without a name."""
    assert post(media, form("hears", size=9) + b"\r\n--b--\r\n").status_code == 200
    router = next(p for p in media.processes() if "router" in p.cmdline())
    before, most, held = router.memory_info().rss, 0, list[Path]()
    rest = b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nhears' if file_first else b""

    def pieces() -> Iterator[bytes]:
        nonlocal most
        yield form("hears", file_first=file_first)
        for _ in range(LARGE_MB):
            yield b"\0" * MIB
            most = max(most, router.memory_info().rss)
            held.extend(files_left(media))
        yield rest + b"\r\n--b--\r\n"

    answer = media.http.post(
        "/v1/audio/transcriptions", content=pieces(), headers={"content-type": "multipart/form-data; boundary=b"}
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["seconds"] == round(LARGE_MB * MIB / 32_000, 3)
    assert most - before < 24 * MIB
    assert max(Counter(held).values(), default=0) < 2  # Python tries a folder with a file that is gone at once


def test_a_cold_start_holds_the_upload_back_in_its_client(media: Stack) -> None:
    """What the client can send meanwhile fits into the sockets' buffers and one piece in the router."""
    router = next(p for p in media.processes() if "router" in p.cmdline())
    before, sent = router.memory_info().rss, 0
    with socket.create_connection(("127.0.0.1", media.port)) as connection:
        connection.sendall(start_of_request(LARGE_MB * MIB) + form("hears/loads"))
        media.until("hears/loads", "starting")
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                sent += connection.send(b"\0" * MIB)

        assert sent < 32 * MIB
        assert router.memory_info().rss - before < 8 * MIB
        (request,) = waiting(media, "hears/loads")
        media.http.post(f"/admin/requests/{request}/cancel").raise_for_status()
        connection.settimeout(5)
        assert b"cancelled" in connection.recv(65536)


def test_a_client_that_leaves_while_its_upload_is_held_back_is_noticed(media: Stack) -> None:
    with socket.create_connection(("127.0.0.1", media.port)) as connection:
        connection.sendall(start_of_request(LARGE_MB * MIB) + form("hears/loads", size=16 * 1024))
        eventually(lambda: waiting(media, "hears/loads"), what="the request to wait")

    eventually(lambda: not waiting(media, "hears/loads"), within_s=1, what="the router to notice")


def waiting(stack: Stack, function: str) -> list[str]:
    """Return the ids of the requests that wait for a function."""
    live = stack.http.get("/admin/requests").json()["requests"]
    return [r["id"] for r in live if r["function"] == function and r["phase"] == "waiting"]


@pytest.mark.parametrize("whole", [True, False], ids=["waits for its answer", "sends"])
def test_a_client_that_leaves_ends_the_workers_request(media: Stack, whole: bool) -> None:
    body = form("hears/waits", size=MIB) + b"\r\n--b--\r\n"
    before = of_worker(media, "hears/waits")["aborted"] if media.state("hears/waits") == "ready" else 0
    with socket.create_connection(("127.0.0.1", media.port)) as connection:
        connection.sendall(start_of_request(len(body)) + (body if whole else body[: MIB // 2]))
        eventually(
            lambda: media.state("hears/waits") == "ready" and of_worker(media, "hears/waits")["in_flight"] == 1,
            what="the request to reach the worker",
        )

    eventually(lambda: of_worker(media, "hears/waits")["aborted"] == before + 1, within_s=1, what="the worker to stop")


def test_a_form_that_is_held_whole_is_sent_to_another_instance_and_a_longer_one_is_not(media: Stack) -> None:
    small = post(media, form("hears/refuses", size=9) + b"\r\n--b--\r\n")
    large = post(media, form("hears/refuses", size=MIB) + b"\r\n--b--\r\n")
    tries = {a.headers["x-request-id"]: a for a in (small, large)}
    reports = {id: media.http.get(f"/admin/requests/{id}").json()["requests"][0]["tries"] for id in tries}

    assert [small.status_code, large.status_code] == [502, 502]
    assert [len(reports[small.headers["x-request-id"]]), len(reports[large.headers["x-request-id"]])] == [3, 1]


def files_left(stack: Stack) -> list[Path]:
    """Return what routers have put into the temporary folder, in which workers have folders and files of their own."""
    return [path for path in (stack.folder / "tmp").iterdir() if not path.name.startswith(("cortex-", "died-"))]


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nx\r\n'
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nhears\r\n'
BAD_FORMS = {
    "no file": (MODEL + b"--b--\r\n", "file"),
    "two files": (MODEL + FILE + FILE + b"--b--\r\n", "file"),
    "an empty file": (MODEL + FILE.replace(b"x\r\n", b"\r\n") + b"--b--\r\n", "file"),
    "text for a file": (MODEL + FILE.replace(b'; filename="a.wav"', b"") + b"--b--\r\n", "file"),
    "a file for text": (MODEL + FILE.replace(b'"file"', b'"prompt"') + b"--b--\r\n", "prompt"),
    "no model": (FILE + b"--b--\r\n", "model"),
    "two models": (MODEL + MODEL + FILE + b"--b--\r\n", "model"),
    "an empty model": (MODEL.replace(b"hears", b"") + FILE + b"--b--\r\n", "model"),
    "no number": (MODEL + MODEL.replace(b"model", b"temperature") + FILE + b"--b--\r\n", "temperature"),
    "a name that is not UTF-8": (MODEL + FILE.replace(b"a.wav", b"\xff.wav") + b"--b--\r\n", "file"),
    "text that is not UTF-8": (MODEL + MODEL.replace(b"model", b"prompt").replace(b"hears", b"\xff") + FILE, "prompt"),
    "an end that is missing": (MODEL + FILE, None),
    "headers without end": (MODEL + b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 200_000, None),
    "many headers": (MODEL + b"--b\r\n" + b"a: b\r\n" * 50, None),
    "many parts": (MODEL + b'--b\r\nContent-Disposition: form-data; name="x[]"\r\n\r\n\r\n' * 100, None),
    "another boundary": (b"--c\r\n" * 50_000, None),
    "nothing": (b"", None),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_an_invalid_form_is_a_400_with_the_field(media: Stack, name: str) -> None:
    body, field = BAD_FORMS[name]

    answer = post(media, body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert files_left(media) == []


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "b" * 71]
)
def test_a_form_without_a_boundary_is_a_400(media: Stack, content_type: str) -> None:
    answer = post(media, MODEL + FILE + b"--b--\r\n", content_type=content_type)

    assert answer.status_code == 400, answer.text
    assert "boundary" in answer.json()["error"]["message"] or "multipart/form-data" in answer.json()["error"]["message"]


def test_a_form_that_is_too_large_is_a_413_with_both_numbers_before_it_is_read(media: Stack) -> None:
    with socket.create_connection(("127.0.0.1", media.port), timeout=5) as connection:
        connection.sendall(start_of_request(251 * MIB))
        answer = connection.recv(65536)

    assert b"413" in answer.split(b"\r\n")[0]
    assert b"251.0 MiB" in answer
    assert b"250" in answer


def test_a_function_may_be_named_in_the_query(media: Stack) -> None:
    body = FILE + b"--b--\r\n"

    named = post(media, body, "/v1/audio/transcriptions?model=whisper-1")
    other = post(media, FILE + MODEL + b"--b--\r\n", "/v1/audio/transcriptions?model=whisper-1")

    assert named.json()["text"] == "one two three"
    assert other.status_code == 400
    assert other.json()["error"]["param"] == "model"


def test_fields_that_do_not_pass_are_named_in_the_answer(media: Stack) -> None:
    unknown = MODEL.replace(b"model", b"vad_filter")

    answer = post(media, MODEL + unknown + FILE + unknown.replace(b"vad", b"late") + b"--b--\r\n")

    assert answer.status_code == 200
    assert answer.headers["x-cortex-dropped"] == "late_filter, vad_filter"


def test_a_request_that_a_function_cannot_serve_is_a_400_that_names_functions_that_can(
    media: Stack, client: openai.OpenAI
) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"'chats' serves chat, completions.*not transcriptions: use 'hears'"
    ):
        client.audio.transcriptions.create(model="chats", file=("a.wav", AUDIO))
    with pytest.raises(openai.BadRequestError, match=r"'hears' serves transcriptions.*not chat: use 'chats'"):
        client.chat.completions.create(model="hears", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match=r"'hears' serves .*not speech: use 'speaks'"):
        client.audio.speech.create(model="hears", voice="alloy", input="x")
    assert media.state("chats") == "cold"


# Speech.


def test_speech_is_streamed_as_the_worker_generates_it(client: openai.OpenAI, tmp_path: Path) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="one two three", response_format="wav"
    ) as answer:
        answer.stream_to_file(tmp_path / "a.wav")

    assert answer.headers["content-type"] == "audio/wav"
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"
    assert (tmp_path / "a.wav").stat().st_size == 44 + 3 * 8000


def test_speech_comes_as_events_to_clients_that_want_them(media: Stack) -> None:
    body = {"model": "speaks", "voice": "alloy", "input": "one two", "stream_format": "sse"}

    answer = media.http.post("/v1/audio/speech", json=body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.count("speech.audio.delta") == 2
    assert "speech.audio.done" in answer.text


def test_an_unknown_voice_is_the_workers_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="voice: 'nobody' is none of") as refused:
        client.audio.speech.create(model="speaks", voice="nobody", input="x")

    assert refused.value.param == "voice"


@pytest.mark.parametrize(
    ("field", "value"), [("input", ""), ("input", 5), ("input", "x" * 70_000), ("speed", 99), ("voice", "x" * 300)]
)
def test_an_invalid_field_of_speech_is_a_400_with_its_name(media: Stack, field: str, value: object) -> None:
    answer = media.http.post("/v1/audio/speech", json={"model": "speaks", "voice": "alloy", "input": "x", field: value})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def test_speech_that_breaks_off_never_looks_complete(media: Stack) -> None:
    body = {"model": "speaks/breaks", "voice": "alloy", "input": "one two three four"}

    with pytest.raises(httpx.RemoteProtocolError), media.http.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.status_code == 200
        for _ in answer.iter_raw():
            pass


# Images.


def test_images_are_generated(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="gpt-image-1", prompt="a red boat", n=2, size="1024x1024")

    assert [base64.b64decode(image.b64_json or "")[:4] for image in answer.data or ()] == [b"\x89PNG"] * 2
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2


def test_images_are_streamed_as_the_workers_events(client: openai.OpenAI) -> None:
    events = list(client.images.generate(model="draws", prompt="a boat", stream=True, partial_images=1))

    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]


def test_images_are_edited_with_a_mask(client: openai.OpenAI) -> None:
    picture = ("a.png", io.BytesIO(b"\x89PNG"), "image/png")

    one = client.images.edit(model="draws", image=picture, mask=("m.png", b"\x89PNG"), prompt="a red boat", n=2)
    two = client.images.edit(model="draws", image=[("a.png", b"a"), ("b.png", b"b")], prompt="a red boat")

    assert [len(one.data or ()), len(two.data or ())] == [2, 1]


@pytest.mark.parametrize(
    ("field", "value"), [("size", "999999x999999"), ("n", 1000), ("n", "two"), ("prompt", ""), ("partial_images", 9)]
)
def test_an_absurd_request_for_images_is_a_400_with_the_field(media: Stack, field: str, value: object) -> None:
    answer = media.http.post("/v1/images/generations", json={"model": "draws", "prompt": "x", field: value})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


# What is counted.


@pytest.mark.long
def test_seconds_characters_and_images_are_counted(media: Stack, client: openai.OpenAI) -> None:
    client.audio.transcriptions.create(model="counts/hears", file=("a.wav", AUDIO), response_format="verbose_json")
    list(client.audio.transcriptions.create(model="counts/hears", file=("a.wav", AUDIO), stream=True))
    client.audio.speech.create(model="counts/speaks", voice="alloy", input="one two three").read()
    client.images.generate(model="counts/draws", prompt="x", n=3)

    eventually(
        lambda: counts(media) == {"counts/hears": round(2 * SECONDS, 3), "counts/speaks": 13, "counts/draws": 3},
        what="the counts",
    )


def counts(stack: Stack) -> dict[str, float]:
    """Return what the metrics of media have of the functions that only one test uses."""
    text = httpx.get(f"http://{stack.env['CORTEX_GATEWAY__METRICS_LISTEN']}/metrics", trust_env=False).text
    pattern = r'^cortex_(?:audio_seconds|speech_characters|images)_total\{model="(counts/\w+)".* (\S+)$'
    return {model: round(float(value), 3) for model, value in re.findall(pattern, text, re.MULTILINE)}
