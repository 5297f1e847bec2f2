"""Transcriptions by faster-whisper and speech by Piper, through cortex."""

import io
import json
import subprocess
import wave

import openai
import pytest

from tests.media.conftest import HOME, PROGRAMS
from tests.support.stack import Stack

SENTENCE = "The harbour is quiet tonight."
"""What the weights say of any audio."""
TEXT = "Good evening. The boat leaves at nine."


def silence(seconds: int, rate: int = 16_000) -> bytes:
    """Return a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(rate)
        audio.writeframes(bytes(2 * rate * seconds))
    return file.getvalue()


def seconds_of(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as audio:
        return float(audio.getnframes() / audio.getframerate())


# Transcriptions.


def test_a_transcription_by_a_cold_function_is_held_until_its_server_is_up(stack: Stack, client: openai.OpenAI) -> None:
    assert stack.state("hears") == "cold"

    answer = client.audio.transcriptions.with_raw_response.create(model="hears", file=("a.wav", silence(3)))

    assert answer.headers["x-cortex-start"] == "cold"
    assert answer.parse().text == SENTENCE


def test_the_server_gets_the_whole_audio(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="hears", file=("a.wav", silence(200)), response_format="verbose_json", language="en"
    )

    assert answer.duration == 200
    assert next(segment.text for segment in answer.segments or ()) == SENTENCE


def test_audio_is_translated(client: openai.OpenAI) -> None:
    assert client.audio.translations.create(model="hears", file=("a.wav", silence(2))).text == SENTENCE


def test_the_reason_of_a_server_that_refuses_a_format_reaches_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Unsupported response_format: srt"):
        client.audio.transcriptions.create(model="hears", file=("a.wav", silence(1)), response_format="srt")


def test_a_file_that_is_not_audio_is_an_error_and_the_server_lives(stack: Stack, client: openai.OpenAI) -> None:
    instance = stack.instance("hears")["id"]

    with pytest.raises(openai.InternalServerError, match="the worker answered 500 without a message"):
        client.audio.transcriptions.create(model="hears", file=("a.wav", b"not audio at all" * 100))

    assert client.audio.transcriptions.create(model="hears", file=("a.wav", silence(1))).text == SENTENCE
    assert stack.instance("hears")["id"] == instance


# Speech.


def test_speech_by_a_cold_function_is_held_until_its_server_is_up(stack: Stack, client: openai.OpenAI) -> None:
    assert stack.state("speaks") == "cold"

    answer = client.audio.speech.with_raw_response.create(
        model="speaks", voice="alloy", input=TEXT, response_format="wav"
    )

    assert answer.headers["x-cortex-start"] == "cold"
    assert answer.headers["content-type"] == "audio/wav"
    assert seconds_of(answer.content) > 1


def test_speech_arrives_in_pieces(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="speaks", voice="alloy", input=TEXT * 20, response_format="pcm"
    ) as answer:
        pieces = list(answer.iter_bytes())

    assert len(pieces) > 2
    assert sum(map(len, pieces)) > 1024 * 1024


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [("x" * 9000, "wav", "8000"), ("Hello.", "wma", "response_format must be one of: wav, pcm")],
)
def test_the_reason_of_a_server_that_refuses_a_text_reaches_the_client(
    client: openai.OpenAI, text: str, wanted: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.audio.speech.create(model="speaks", voice="alloy", input=text, extra_body={"response_format": wanted})


# Both.


def test_what_one_function_speaks_another_transcribes(client: openai.OpenAI) -> None:
    spoken = client.audio.speech.create(model="speaks", voice="alloy", input=TEXT, response_format="wav").read()

    transcript = client.audio.transcriptions.create(
        model="hears", file=("spoken.wav", spoken), response_format="verbose_json"
    )

    assert transcript.text == SENTENCE
    assert transcript.duration == pytest.approx(seconds_of(spoken), abs=0.1)


def test_openais_package_for_node_speaks_and_transcribes(stack: Stack) -> None:
    argv = ["node", str(PROGRAMS / "openai_media.mjs"), HOME, stack.url, "hears", "speaks"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)

    assert (result["begins"], result["contentType"]) == ("RIFF", "audio/wav")
    assert result["text"] == result["translated"] == SENTENCE
    assert result["duration"] == pytest.approx(result["size"] / 2 / 22_050, abs=0.1)
    assert result["refused"]["status"] == 400
    assert "hears" in result["refused"]["message"]
