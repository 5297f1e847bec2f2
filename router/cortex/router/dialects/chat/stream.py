"""A worker's chat stream for a client of the same dialect: frames passed on, watched as they pass.

The usage chunk that we asked for and the client did not is kept back. `[DONE]` is sent only when every choice has
ended: a worker that was interrupted says it too, and then the client gets an error and no `[DONE]`.
"""

import msgspec

from cortex.router.dialects.chat.answer import ChunkRepair, plain, renamed
from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Plain, Tokens
from cortex.router.dialects.core.errors import BadAnswer, Fault, openai_error
from cortex.router.dialects.core.sse import SSEDecoder, encode_data
from cortex.router.dialects.core.stream import DONE


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """How to answer one request. `choices` is how many endings the client is owed."""

    id: str
    model: str
    choices: int = 1
    usage_is_ours: bool = False

    def plain(self, body: bytes) -> Plain:
        return plain(body, self.id, self.model)

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
        self._mender = ChunkRepair(reply.id)
        self._usage: chunks.Usage | None = None
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    @property
    def tokens(self) -> Tokens:
        return chunks.tokens(self._usage)

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
                    out.append(self._done(self._begun <= self._ended))
                    break
                out.append(self._passed(frame.data))
        except BadAnswer as error:
            out.append(self.fail(error.fault))
        return b"".join(out)

    def close(self) -> bytes:
        """The worker's body has ended, perhaps without saying so."""
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.close():
                if frame.data == DONE:
                    out.append(self._done(self._begun <= self._ended))
                    return b"".join(out)
                out.append(self._passed_last(frame.data))
            out.append(self._done(len(self._ended) >= self._reply.choices))
        except BadAnswer as error:
            out.append(self.fail(error.fault))
        return b"".join(out)

    def fail(self, fault: Fault) -> bytes:
        if self.over:
            return b""
        self.over, self.fault = True, fault
        return encode_data(msgspec.json.encode(openai_error(fault)))

    def _passed(self, data: bytes) -> bytes:
        chunk = chunks.decode(data)
        self.rough_tokens += chunks.rough_tokens(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
            if not chunk.choices and self._reply.usage_is_ours:
                return b""
        for choice in chunk.choices or ():
            self._begun.add(choice.index)
            if chunks.ending(chunk, choice) is not None:
                self._ended.add(choice.index)
        return encode_data(renamed(self._mender.piece(chunk, data), chunk.model, self._reply.model))

    def _passed_last(self, data: bytes) -> bytes:
        """What the end cut off may be half a chunk; what was ended before it stays ended."""
        try:
            return self._passed(data)
        except chunks.Garbled:
            return b""

    def _done(self, is_whole: bool) -> bytes:
        if not (is_whole and self._ended):
            raise chunks.truncated()
        self.over = True
        return encode_data(DONE)
