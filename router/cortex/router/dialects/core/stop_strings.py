"""Cut a worker's stream at a stop string, for servers that do not name the one that they stopped at. Pure.

llama.cpp ends an answer at a stop string exactly as at its end, and Anthropic's clients need to know which it was. So
those servers are not given the strings: the text is searched here, and the worker stops when its connection closes.
Text that may be the beginning of a stop string waits for the next piece.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from cortex.router.dialects.core import lenient
from cortex.router.dialects.core.sse import SSEDecoder, encode_data
from cortex.router.dialects.core.stream import DONE, is_empty

MOST_CHARACTERS = 4096
"""Characters of all stop strings of a request that are searched; a worker gets longer ones itself."""
_decoder = msgspec.json.Decoder(dict[str, Any])


class StopCut:
    """Feed it the worker's stream; it returns the stream to read instead. `over`: a stop string was found."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._frames = SSEDecoder()
        self._held = ""
        self.over = False

    def feed(self, data: bytes) -> bytes:
        """Return the events that this piece completes, up to a stop string."""
        return self._read(self._frames.feed(data))

    def close(self) -> bytes:
        """Return the last, unterminated event."""
        return self._read(self._frames.close())

    def _read(self, frames: Sequence[Any]) -> bytes:
        out: list[bytes] = []
        for frame in frames:
            if self.over:
                break
            if frame.data == DONE or is_empty(frame.data):
                out.append(encode_data(frame.data))
                continue
            try:
                chunk = lenient.decode(frame.data, _decoder)[0]
                self._chunk(chunk, out)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _NoChunk):
                out.append(encode_data(frame.data))  # the dialect names what is wrong
        return b"".join(out)

    def _chunk(self, chunk: dict[str, Any], out: list[bytes]) -> None:
        choice, delta = _choice_of(chunk)
        text = delta.get("content")
        ends = bool(choice.get("finish_reason"))
        if not isinstance(text, str) or not text:
            if self._held and (ends or any(value for name, value in delta.items() if name != "role")):
                out.append(
                    _encode(chunk | {"choices": [{"index": 0, "delta": {"content": self._held}}], "usage": None})
                )
                self._held = ""
            out.append(_encode(chunk))
            return
        text = self._held + text
        # The first to be complete, as a worker would stop at it.
        first = min(((at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0), default=None)
        if first is not None:
            _, at, stop = first
            end = choice | {"delta": delta | {"content": text[:at]}, "finish_reason": "stop", "stop_reason": stop}
            out += (_encode(chunk | {"choices": [end], "usage": _usage(chunk)}), encode_data(DONE))
            self.over = True
            return
        waiting = 0 if ends else self._beginning(text)
        self._held = text[len(text) - waiting :]
        delta["content"] = text[: len(text) - waiting]
        out.append(_encode(chunk))

    def _beginning(self, text: str) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0


async def cut_at(chunks: AsyncIterator[bytes], stops: Sequence[str]) -> AsyncIterator[bytes]:
    """Yield a worker's stream up to a stop string."""
    cut = StopCut(stops)
    async for chunk in chunks:
        if data := cut.feed(chunk):
            yield data
        if cut.over:
            return
    if data := cut.close():
        yield data


class _NoChunk(Exception):
    """The event is not a chunk of one choice."""


def _choice_of(chunk: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(delta, dict):
        raise _NoChunk
    return choice, delta


def _usage(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """Return the usage so far from llama.cpp's timings, which cortex requests with each piece."""
    timings = chunk.get("timings")
    if not isinstance(timings, dict):
        return None
    cached, prompt, output = (timings.get(name) for name in ("cache_n", "prompt_n", "predicted_n"))
    if not (isinstance(prompt, int) and isinstance(output, int)):
        return None
    cached = cached if isinstance(cached, int) else 0
    return {
        "prompt_tokens": prompt + cached,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _encode(chunk: dict[str, Any]) -> bytes:
    return encode_data(msgspec.json.encode(chunk))
