"""Recognise the chunks of a stream that differ from an earlier one in one piece of text only. Pure.

A worker writes the same chunk for every token but for the text. Once one chunk has been decoded and relayed, a chunk
with the same bytes around a valid JSON string has the same meaning, and needs no decoding: what was read from the first
one (no role, no call, no usage, no end, the name of the model) holds for it. Anything else is decoded.
"""

import re

import msgspec

from cortex.router.dialects.core.chunks import CHARACTERS_PER_TOKEN, Chunk

_TEXTS = ("content", "reasoning_content")
_HEAD, _END = b"data: ", b"\n\n"
_LINE_END = b"\r\n"
_PLAIN = bytes(range(0x20, 0x80)).translate(None, b'"\\')
"""The characters of most texts: a JSON string has them as they are, a byte each."""
_STRING = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\["\\/bfnrt][^"\\\x00-\x1f]*+)*+')
"""The inside of a JSON string. Escapes by number are decoded: half a surrogate pair has to be repaired."""
_ESCAPE = re.compile(rb"\\.")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(str).decode

Around = tuple[bytes, bytes]
"""The bytes of a frame before and after its text."""


class Template:
    """A worker's chunk, and the bytes around its text."""

    __slots__ = ("_chunk", "_least", "_name", "_owner", "_text", "around")

    def __init__(self, around: Around, chunk: Chunk, owner: msgspec.Struct, name: str, text: str) -> None:
        """The chunk's text is the field `name` of `owner`, a part of the chunk."""
        self.around, self._least = around, len(around[0]) + len(around[1])
        self._chunk, self._owner, self._name, self._text = chunk, owner, name, text

    def texts(self, data: bytes) -> list[bytes]:
        """Return the text of each frame in a piece of a stream, as in JSON without its quotes. None, for a piece that
        is not made of whole frames of this form."""
        before, after = self.around
        if len(data) > self._least and data.startswith(before) and data.endswith(after):
            text = data[len(before) : -len(after)]
            if not text.translate(None, _PLAIN):  # no line ends in it: one frame
                return [text]
        texts: list[bytes] = []
        at = 0
        while at < len(data):
            end = data.find(_END, at) + len(_END)
            if end < at + self._least or not data.startswith(before, at) or not data.endswith(after, at, end):
                return []
            text = data[at + len(before) : end - len(after)]
            if not text or _STRING.fullmatch(text) is None or not (text.isascii() or _is_utf8(text)):
                return []
            texts.append(text)
            at = end
        return texts

    def chunk(self, text: bytes) -> Chunk:
        """Return the chunk with one of the `texts`. It is the same object each time."""
        setattr(self._owner, self._name, _decode(b'"%b"' % text))
        return self._chunk

    def around_in(self, json: bytes) -> Around | None:
        """Return the bytes around the text in the frame of another form of the chunk; None unless the text is there
        once."""
        return _around(json, self._name.encode(), _encode(self._text))


class ChunkForm:
    """The form of whole chunks of HTTP (RFC 9112, 7.1) that have one frame of a template each, framing included, and
    what they become for a client whose frames have other bytes around the text."""

    __slots__ = ("_client", "_client_tail", "_sizes", "_tail", "_worker", "rough_tokens")

    def __init__(self, worker: Around, client: Around) -> None:
        self._worker, self._client = worker, client
        self._tail, self._client_tail = worker[1] + _LINE_END, client[1] + _LINE_END
        self._sizes: dict[int, _Size] = {}
        self.rough_tokens = 0
        """An estimate of the tokens that were passed on."""

    def pass_on(self, data: bytes) -> bytes:
        """Return the client's chunks for one chunk, or for several that arrived together. Nothing, for any other chunk
        and for texts that are not plain ASCII."""
        size = len(data)
        head, client_head, end, tokens = self._sizes.get(size) or self._size(size)
        if not data.endswith(self._tail):
            return b""
        if not data.startswith(head):
            return self._pass_several_on(data)
        text = data[len(head) : end]
        if text.translate(None, _PLAIN):
            return b""
        self.rough_tokens += tokens
        return data if client_head is head else b"".join((client_head, text, self._client_tail))

    def _pass_several_on(self, data: bytes) -> bytes:
        del self._sizes[len(data)]  # that of no chunk
        out: list[bytes] = []
        at = all_tokens = 0
        while at < len(data):
            line = data[at : at + _LONGEST_LINE].partition(_LINE_END)[0]
            try:
                size = len(line) + int(line, 16) + 2 * len(_LINE_END)
            except ValueError:
                return b""
            head, client_head, text_end, tokens = self._sizes.get(size) or self._size(size)
            if not (data.startswith(head, at) and data.endswith(self._tail, at, at + size)):
                return b""
            text = data[at + len(head) : at + text_end]
            if len(text) != text_end - len(head) or text.translate(None, _PLAIN):
                return b""
            out += (client_head, text, self._client_tail)
            all_tokens += tokens
            at += size
        self.rough_tokens += all_tokens
        return data if self._client == self._worker else b"".join(out)

    def _size(self, size: int) -> "_Size":
        """Return what chunks of a size have in common, and remember it."""
        if len(self._sizes) >= _SIZES:
            self._sizes.clear()
        (before, after), (client_before, client_after) = self._worker, self._client
        form = _NO_SIZE
        digits = len(b"%x" % size)
        for frame in (size - digits - 2 * len(_LINE_END), size - digits + 1 - 2 * len(_LINE_END)):
            line = b"%x\r\n" % frame
            text = frame - len(before) - len(after)
            if text > 0 and len(line) + frame + len(_LINE_END) == size:
                head = client_head = line + before
                if self._client != self._worker:
                    client_head = b"%x\r\n%b" % (len(client_before) + text + len(client_after), client_before)
                form = head, client_head, len(head) + text, text // CHARACTERS_PER_TOKEN or 1
        self._sizes[size] = form
        return form


_Size = tuple[bytes, bytes, int, int]
"""Of the chunks of one size: what they begin with, here and at the client, where the text ends, and its tokens."""
_NO_SIZE = b"\0", b"", 0, 0
"""No chunk begins with it."""
_SIZES = 256
_LONGEST_LINE = 10
"""Bytes in which the line of a chunk's size has to end."""


def template_of(chunk: Chunk, data: bytes) -> Template | None:
    """Return the template of a chunk that was read from JSON; None if it has no single piece of text."""
    if chunk.usage is not None or chunk.stopping_word or not chunk.choices or len(chunk.choices) != 1:
        return None
    choice = chunk.choices[0]
    delta = choice.delta
    if choice.finish_reason or choice.message is not None:
        return None
    owner: msgspec.Struct = choice if delta is None else delta
    if delta is None:
        texts = {"text": choice.text} if isinstance(choice.text, str) else {}
    elif delta.role or delta.tool_calls or delta.reasoning or choice.text is not None:
        return None
    else:
        texts = {name: text for name in _TEXTS if (text := getattr(delta, name))}
    if len(texts) != 1:
        return None
    ((name, text),) = texts.items()
    around = _around(data, name.encode(), _encode(text)) if text else None
    return Template(around, chunk, owner, name, text) if around else None


def rough_tokens(text: bytes) -> int:
    """Estimate the tokens of one of a template's texts, as `chunks.rough_tokens` does for a chunk."""
    if b"\\" in text:
        text = _ESCAPE.sub(b"x", text)
    characters = len(text) if text.isascii() else len(text.decode("utf-8", "replace"))
    return max(1, characters // CHARACTERS_PER_TOKEN)


def _around(json: bytes, name: bytes, text: bytes) -> Around | None:
    for member in (b'"%b":%b' % (name, text), b'"%b": %b' % (name, text)):
        if json.count(member) == 1 and b"\n" not in json:
            end = json.index(member) + len(member) - 1
            return _HEAD + json[: end - len(text) + 2], json[end:] + _END
    return None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
