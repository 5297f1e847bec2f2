"""A worker's chat stream for a client of the same dialect: frames are forwarded and tracked.

The usage chunk is removed if only cortex requested it. `[DONE]` is sent only when every choice has ended: interrupted
workers send it too, and then the client gets an error instead.
"""

import contextlib

import msgspec

from cortex.router.dialects.chat.answer import ChunkRepair, plain
from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Plain, Tokens
from cortex.router.dialects.core.errors import Fault, openai_error
from cortex.router.dialects.core.sse import Event, comment, encode_data
from cortex.router.dialects.core.stream import DONE, FrameStream, is_empty
from cortex.router.dialects.core.template import Around, ChunkForm, Template, rough_tokens


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Builds the answer to one request. `choices` is the number of answers the client expects."""

    id: str
    model: str
    choices: int = 1
    usage_is_ours: bool = False

    def plain(self, body: bytes) -> Plain:
        return plain(body, self.id, self.model)

    def with_limit(self, max_tokens: int | None, input_tokens: int | None) -> "Reply":
        return self

    def stream(self, request_id: str | None = None) -> "ChatStream":
        return ChatStream(self)


class ChatStream(FrameStream):
    """The `Stream` of chat and of legacy completions."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply
        self._repair = ChunkRepair(reply.id)
        self._usage: chunks.Usage | None = None
        self._usages: dict[int, chunks.Usage] = {}
        """Of the choices of a completion: llama.cpp counts each prompt by itself."""
        self._around: Around | None = None
        """The client's bytes around the text of the template."""
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

    def ping(self, reason: str = "") -> bytes:
        return b"" if self.over else comment(reason or "waiting") + b"\n"

    def _relay_texts(self, template: Template, texts: list[bytes], data: bytes, out: list[bytes]) -> None:
        self._rough_tokens += sum(map(rough_tokens, texts))
        if self._around == template.around:
            out.append(data)
        elif self._around is not None:
            before, after = self._around
            for text in texts:
                out += (before, text, after)

    def _relay(self, frame: Event, out: list[bytes]) -> None:
        if frame.data == DONE:
            self._finish(out, is_complete=self._started <= self._ended)
            return
        if is_empty(frame.data):
            return
        chunk, data = chunks.decode_strict(frame.data)
        self._rough_tokens += chunks.rough_tokens(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
            if not chunk.choices and self._reply.usage_is_ours:
                return
        for choice in chunk.choices or ():
            self._started.add(choice.index)
            if chunk.usage is not None and choice.text is not None:
                self._usages[choice.index] = chunk.usage
            if chunks.ending(chunk, choice) is not None:
                self._ended.add(choice.index)
        output = chunks.replace_model(self._repair.piece(chunk, data), chunk.model, self._reply.model)
        out.append(encode_data(output))
        if template := self._learn(chunk, frame.data):
            self._around = around = template.around_in(output)
            if around is None:
                self._template = None
            else:
                self._chunk_form = ChunkForm(template.around, around)

    def _relay_last(self, frame: Event, out: list[bytes]) -> None:
        """Relay the last frame. It may be half a chunk, which is ignored."""
        with contextlib.suppress(chunks.UnreadableAnswer):
            self._relay(frame, out)

    def _end(self, out: list[bytes]) -> None:
        self._finish(out, is_complete=len(self._ended) >= self._reply.choices)

    def _finish(self, out: list[bytes], *, is_complete: bool) -> None:
        if not (is_complete and self._ended):
            raise chunks.truncation()
        self.over = True
        out.append(encode_data(DONE))

    def _encode_fault(self, fault: Fault) -> bytes:
        return encode_data(msgspec.json.encode(openai_error(fault)))
