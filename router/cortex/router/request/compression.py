"""Unpack compressed request bodies, one bounded step at a time. Pure.

Codex sends zstd, some HTTP clients gzip. Python has no zstd before 3.14; `backports.zstd` is the standard library's
module for older versions, and can bound the output of one call, which `zstandard` cannot.
"""

import zlib
from typing import Literal, Protocol

from backports import zstd

from cortex.router.dialects.core.errors import BadRequest, Kind

Encoding = Literal["gzip", "zstd"]

STEP = 256 * 1024
"""Largest output of one step, about a millisecond of work."""
_INPUT = 64 * 1024
MOST_MEMBERS = 64
"""Gzip members or zstd frames in a body."""
_WINDOW_LOG = 23
"""zstd window that a decoder must accept (RFC 9659): 8 MiB. A larger one would take more memory than a body."""
_ENCODINGS: dict[str, Encoding] = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def encoding_of(header: str) -> Encoding | None:
    """Return the encoding that a Content-Encoding header names; None for no encoding. Raises BadRequest."""
    name = header.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _ENCODINGS:
        raise BadRequest(
            f"bodies compressed as {name[:40]!r} are not supported: send gzip, zstd or no Content-Encoding",
            kind=Kind.UNSUPPORTED_MEDIA,
        )
    return _ENCODINGS[name]


class Unpacker:
    """Call `step` until `over`."""

    def __init__(self, encoding: Encoding, data: bytes) -> None:
        self._encoding: Encoding = encoding
        self._data, self._at, self._members = memoryview(data), 0, 1
        self._decoder = self._new()
        self._pending = b""
        """Input that the decoder has not taken."""
        self.over = False

    def step(self) -> bytes:
        """Return the next `STEP` bytes at most; b"" at the end. Raises BadRequest."""
        while not self.over:
            if self._decoder.eof:
                self._next_member()
                continue
            has_ended = not self._pending and self._at >= len(self._data)
            output = self._decode(self._pending or self._next_input())
            if output:
                return output
            if has_ended and not self._decoder.eof:
                raise BadRequest(f"the {self._encoding} body ends too early")
        return b""

    def _decode(self, data: bytes) -> bytes:
        try:
            output = self._decoder.decompress(data, STEP)
        except (zlib.error, zstd.ZstdError, EOFError) as error:
            raise BadRequest(f"the body is not valid {self._encoding}: {error}") from None
        self._pending = getattr(self._decoder, "unconsumed_tail", b"")
        return output

    def _next_input(self) -> bytes:
        piece = bytes(self._data[self._at : self._at + _INPUT])
        self._at += len(piece)
        return piece

    def _next_member(self) -> None:
        self._at -= len(self._decoder.unused_data)
        if self._at >= len(self._data):
            self.over = True
            return
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise BadRequest(f"the {self._encoding} body has more than {MOST_MEMBERS} parts")
        self._decoder, self._pending = self._new(), b""

    def _new(self) -> _Decoder:
        if self._encoding == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
