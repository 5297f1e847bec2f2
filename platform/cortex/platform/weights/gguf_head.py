"""Reads the metadata at the head of a GGUF file, without its tensors and its vocabulary.

The file is untrusted: every length is checked against the file's size, and any inconsistency raises BadGguf. Arrays
are skipped, not read; a vocabulary of 200000 words takes some tens of milliseconds. The total number of skipped texts
and arrays is bounded, so no file takes more than about a second.
"""

import mmap
import struct
from pathlib import Path

Value = str | int | float | bool

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_SIZES = {kind: struct.calcsize(form) for kind, form in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MOST_KEYS, _DEEPEST = 4096, 4
_MOST_TEXTS = 4_000_000
"""Over all arrays of a head. The largest vocabularies have 260000 words and twice as many merges."""
_MOST_ARRAYS = 100_000


class BadGguf(Exception):
    """The file has no valid GGUF head."""


def read(path: Path) -> dict[str, Value]:
    """Return every metadata value except arrays. Raises BadGguf or OSError."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Head(data).values()
        except (struct.error, ValueError, IndexError) as error:
            raise BadGguf(f"{path}: {error}") from None


def read_prefix(start: bytes) -> dict[str, Value]:
    """Return the values in the first bytes of a file, which may be cut anywhere; {} when it is not GGUF."""
    head = _Head(start)
    try:
        return head.values()
    except (struct.error, ValueError, IndexError):
        return head.values_read


class _Head:
    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data, self._at, self._end = data, 0, len(data)
        self._texts, self._arrays = _MOST_TEXTS, _MOST_ARRAYS
        self.values_read: dict[str, Value] = {}

    def values(self) -> dict[str, Value]:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not start with GGUF")
        self._at = 4
        version, _tensors, count = self._u32(), self._u64(), self._u64()
        if version not in (2, 3) or count > _MOST_KEYS:
            raise ValueError(f"unsupported: version {version} with {count} keys")
        values = self.values_read
        for _ in range(count):
            name, kind = self._text(), self._u32()
            if kind == _ARRAY:
                self._skip_array(_DEEPEST)
            else:
                values[name] = self._text() if kind == _STRING else self._scalar(kind)
        return values

    def _u32(self) -> int:
        self._at += 4
        return int(_U32.unpack_from(self._data, self._at - 4)[0])

    def _u64(self) -> int:
        self._at += 8
        return int(_U64.unpack_from(self._data, self._at - 8)[0])

    def _skip(self, size: int) -> int:
        """Skip `size` bytes; return where they start."""
        start, self._at = self._at, self._at + size
        if self._at > self._end:
            raise ValueError("it is truncated")
        return start

    def _text(self) -> str:
        size = self._u64()
        start = self._skip(size)
        return self._data[start : self._at].decode("utf-8", "replace")

    def _scalar(self, kind: int) -> Value:
        if kind not in _SCALARS:
            raise ValueError(f"there is no type {kind}")
        value: Value = struct.unpack_from(_SCALARS[kind], self._data, self._skip(_SIZES[kind]))[0]
        return value

    def _skip_array(self, depth: int) -> None:
        kind, count = self._u32(), self._u64()
        if count > self._end:
            raise ValueError("an array is longer than the file")
        self._arrays -= 1
        self._texts -= count if kind == _STRING else 0
        if self._arrays < 0 or self._texts < 0:
            raise ValueError(f"it has more than {_MOST_TEXTS} texts or {_MOST_ARRAYS} arrays")
        if kind == _STRING:
            data, at, read = self._data, self._at, _U64.unpack_from
            for _ in range(count):
                at += 8 + read(data, at)[0]
            self._skip(at - self._at)
        elif kind == _ARRAY:
            if depth == 0:
                raise ValueError("arrays are nested too deeply")
            for _ in range(count):
                self._skip_array(depth - 1)
        elif kind in _SIZES:
            self._skip(count * _SIZES[kind])
        else:
            raise ValueError(f"there is no type {kind}")
