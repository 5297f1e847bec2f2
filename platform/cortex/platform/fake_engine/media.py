"""Audio and images: requests, and answers in OpenAI's shape. Pure.

Audio lasts as long as its bytes would at 16 kHz with 16 bits. A text is spoken as silence, word after word; an image is
one pixel.
"""

import base64
import struct
import zlib
from typing import Any

import msgspec

from cortex.platform.fake_engine.answer import CREATED, Say, text_answer
from cortex.platform.fake_engine.job import Job, whole
from cortex.platform.fake_engine.request import CompletionRequest
from cortex.platform.fake_engine.script import BadScript, Script
from cortex.platform.fake_engine.step import Step, event

BYTES_PER_S = 32_000
WORD_BYTES = 8_000
VOICES = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse")
FORMATS = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm", "opus": "audio/ogg", "flac": "audio/flac"}
AUDIO_PATHS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
FORM_PATHS = AUDIO_PATHS | {"/v1/images/edits"}
EVENTS = "text/event-stream"


class Form(msgspec.Struct, kw_only=True):
    """A multipart form: its fields, the size of its files in bytes, and a checksum of them."""

    fields: dict[str, str] = {}
    files: list[str] = []
    size: int = 0
    checksum: int = 0

    @property
    def model(self) -> str:
        """The field of that name."""
        return self.fields.get("model", "")

    @property
    def streams(self) -> bool:
        """Whether the answer is to be streamed."""
        return self.fields.get("stream", "").lower() in ("true", "1")

    def add(self, data: bytes) -> None:
        """Add a piece of a file."""
        self.size += len(data)
        self.checksum = zlib.crc32(data, self.checksum)


class _Speech(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/audio/speech`."""

    model: str = ""
    input: str
    voice: Any = "alloy"
    response_format: str = "mp3"
    stream_format: str = "audio"


class _Images(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/images/generations`, and the fields of an edit."""

    model: str = ""
    prompt: str
    n: int | None = None
    stream: bool | None = None


_speech = msgspec.json.Decoder(_Speech)
_images = msgspec.json.Decoder(_Images)


def form_job(path: str, form: Form, script: Script, model: str) -> Job:
    """Return the job of a form. Raises BadScript for a form that an engine refuses."""
    if path in AUDIO_PATHS:
        return _transcription(form, script, model)
    number = form.fields.get("n")
    request = _Images(
        model=form.model, prompt=form.fields.get("prompt", ""), n=int(number) if number else None, stream=form.streams
    )
    return _image_job(request, "image_edit")


def _transcription(form: Form, script: Script, model: str) -> Job:
    if form.files != ["file"]:
        raise BadScript(f"file: expected one file, got {len(form.files)}")
    answer = text_answer(CompletionRequest(prompt=f"{form.checksum:08x}"), script, model)
    words = [delta.text for delta in answer.deltas if isinstance(delta, Say)]
    text, seconds = "".join(words), round(form.size / BYTES_PER_S, 3)
    usage: dict[str, object] = {"type": "duration", "seconds": seconds}
    if form.streams:
        steps = [event({"type": "transcript.text.delta", "delta": word}, tokens=1) for word in words]
        steps.append(event({"type": "transcript.text.done", "text": text, "usage": usage}))
        return Job(model=form.model, stream=True, prompt_tokens=0, steps=steps, content_type=EVENTS)
    pauses = [Step(b"", 1)] * len(words)
    kind = form.fields.get("response_format") or "json"
    match kind:
        case "text":
            body, content_type = f"{text}\n", "text/plain; charset=utf-8"
        case "srt":
            body, content_type = f"1\n00:00:00,000 --> {_clock(seconds, ',')}\n{text}\n\n", "application/x-subrip"
        case "vtt":
            body, content_type = f"WEBVTT\n\n00:00:00.000 --> {_clock(seconds, '.')}\n{text}\n\n", "text/vtt"
        case "json":
            body, content_type = msgspec.json.encode({"text": text, "usage": usage}).decode(), ""
        case "verbose_json":
            segment = {"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": text, "tokens": [], "temperature": 0.0}
            segment |= {"avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0}
            payload = {"task": "transcribe", "language": "english", "duration": seconds, "text": text}
            body, content_type = msgspec.json.encode(payload | {"segments": [segment], "usage": usage}).decode(), ""
        case _:
            raise BadScript(f"response_format: '{kind[:40]}' is none of json, text, srt, vtt, verbose_json")
    steps = [*pauses, Step(body.encode())]
    return Job(model=form.model, stream=False, prompt_tokens=0, steps=steps, content_type=content_type)


def speech_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/audio/speech`: a step for each word."""
    request = _speech.decode(body)
    if request.voice not in VOICES:
        raise BadScript(f"voice: {request.voice!r} is none of {', '.join(VOICES)}")
    if request.response_format not in FORMATS:
        raise BadScript(f"response_format: expected one of {', '.join(FORMATS)}")
    words = request.input.split()
    sounds = [b"\0" * WORD_BYTES for _ in words]
    if request.response_format == "wav":
        sounds.insert(0, _wav_head(len(words) * WORD_BYTES))
    steps, content_type = [Step(sound, 1) for sound in sounds], FORMATS[request.response_format]
    if request.stream_format == "sse":
        packed = [base64.b64encode(sound).decode() for sound in sounds]
        usage = {"input_tokens": len(words), "output_tokens": len(words), "total_tokens": 2 * len(words)}
        steps = [event({"type": "speech.audio.delta", "audio": sound}, tokens=1) for sound in packed]
        steps.append(event({"type": "speech.audio.done", "usage": usage}))
        content_type = EVENTS
    return Job(model=request.model, stream=True, prompt_tokens=len(words), steps=steps, content_type=content_type)


def image_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/images/generations`."""
    return _image_job(_images.decode(body), "image_generation")


def _image_job(request: _Images, name: str) -> Job:
    number, tokens = request.n or 1, len(request.prompt.split())
    usage: dict[str, object] = {"input_tokens": tokens, "output_tokens": number, "total_tokens": tokens + number}
    usage["input_tokens_details"] = {"text_tokens": tokens, "image_tokens": 0}
    picture = base64.b64encode(PIXEL).decode()
    if not request.stream:
        payload = {"created": CREATED, "data": [{"b64_json": picture} for _ in range(number)], "usage": usage}
        return Job(model=request.model, stream=False, prompt_tokens=tokens, steps=whole(payload, number))
    shared: dict[str, object] = {"created_at": CREATED, "size": "1024x1024", "quality": "low", "background": "opaque"}
    shared |= {"output_format": "png", "b64_json": picture}
    steps = [
        event({"type": f"{name}.partial_image", "partial_image_index": 0, **shared}, tokens=1),
        event({"type": f"{name}.completed", "usage": usage, **shared}),
    ]
    return Job(model=request.model, stream=True, prompt_tokens=tokens, steps=steps, content_type=EVENTS)


def _clock(seconds: float, point: str) -> str:
    """Return a time as subtitles write it."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _wav_head(size: int) -> bytes:
    """Return the header of a WAV file with `size` bytes of samples (RIFF WAVE, PCM)."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, BYTES_PER_S // 2, BYTES_PER_S, 2, 16, b"data", size,
    )  # fmt: skip


def _pixel() -> bytes:
    """Return a PNG of one black pixel (PNG 1.2: a chunk is its length, name, data and checksum)."""
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 4)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


PIXEL = _pixel()
MEDIA_JOBS = {"/v1/audio/speech": speech_job, "/v1/images/generations": image_job}
