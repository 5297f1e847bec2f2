"""A worker's chat stream for a client of the same dialect: frames are forwarded and tracked.

The usage chunk is removed if only cortex requested it. `[DONE]` is sent only when every choice has ended: interrupted
workers send it too, and then the client gets an error instead.
"""

import msgspec

from cortex.router.dialects.chat.answer import ChunkRepair, plain, replace_model
from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Plain, Tokens
from cortex.router.dialects.core.errors import BadAnswer, Fault, openai_error
from cortex.router.dialects.core.sse import SSEDecoder, encode_data
from cortex.router.dialects.core.stream import DONE, is_empty


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Builds the answer to one request. `choices` is the number of answers the client expects."""

    id: str
    model: str
    choices: int = 1
    usage_is_ours: bool = False

    def plain(self, body: bytes) -> Plain:
        return plain(body, self.id, self.model)

    def fitted(self, max_tokens: int | None, input_tokens: int | None) -> "Reply":
        return self

    def stream(self, request_id: str | None = None) -> "ChatStream":
        return ChatStream(self)


class ChatStream:
    """The `Stream` of chat and of legacy completions."""

    def __init__(self, reply: Reply) -> None:
        self.fault: Fault | None = None
        self.over = False
        self.rough_tokens = 0
        self._reply = reply
        self._frames = SSEDecoder()
        self._repair = ChunkRepair(reply.id)
        self._usage: chunks.Usage | None = None
        self._usages: dict[int, chunks.Usage] = {}
        """Of the choices of a completion: llama.cpp counts each prompt by itself."""
        self._started: set[int] = set()
        self._ended: set[int] = set()

    @property
    def tokens(self) -> Tokens:
        if len(self._usages) > 1:
            return chunks.total(self._usages.values())
        return chunks.tokens(self._usage)

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        """Do nothing: no event has a limit or a count of cortex's."""

    def open(self) -> bytes:
        return b""

    def ping(self) -> bytes:
        return b"" if self.over else b": waiting\n\n"

    def feed(self, data: bytes) -> bytes:
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.feed(data):
                if frame.data == DONE:
                    out.append(self._end(self._started <= self._ended))
                    break
                out.append(self._relay(frame.data))
        except BadAnswer as error:
            out.append(self.fail(error.fault()))
        return b"".join(out)

    def close(self) -> bytes:
        """End the stream with the worker's body, which may lack `[DONE]`."""
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.close():
                if frame.data == DONE:
                    out.append(self._end(self._started <= self._ended))
                    return b"".join(out)
                out.append(self._relay_last(frame.data))
            out.append(self._end(len(self._ended) >= self._reply.choices))
        except BadAnswer as error:
            out.append(self.fail(error.fault()))
        return b"".join(out)

    def fail(self, fault: Fault) -> bytes:
        if self.over:
            return b""
        self.over, self.fault = True, fault
        return encode_data(msgspec.json.encode(openai_error(fault)))

    def _relay(self, data: bytes) -> bytes:
        if is_empty(data):
            return b""
        chunk, data = chunks.decode_strict(data)
        self.rough_tokens += chunks.rough_tokens(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
            if not chunk.choices and self._reply.usage_is_ours:
                return b""
        for choice in chunk.choices or ():
            self._started.add(choice.index)
            if chunk.usage is not None and choice.text is not None:
                self._usages[choice.index] = chunk.usage
            if chunks.ending(chunk, choice) is not None:
                self._ended.add(choice.index)
        return encode_data(replace_model(self._repair.piece(chunk, data), chunk.model, self._reply.model))

    def _relay_last(self, data: bytes) -> bytes:
        """Relay the last frame. It may be half a chunk, which is ignored."""
        try:
            return self._relay(data)
        except chunks.UnreadableAnswer:
            return b""

    def _end(self, is_complete: bool) -> bytes:
        if not (is_complete and self._ended):
            raise chunks.truncated()
        self.over = True
        return encode_data(DONE)
