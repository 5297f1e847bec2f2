"""Read a multipart form as it arrives, check it, and write it again for a worker. Pure.

The worker's form is written part by part, with cortex's own boundary and file names, so a worker whose parser differs
cannot read a form other than the one that was checked. Files pass through; a text field is held until it is complete.
Fields that are read before the first `head()` are part of it; later ones keep their place.
"""

import re
from collections import Counter
from collections.abc import Iterator

from msgspec import Struct
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from cortex.functions.passing import CHANGES_THE_ANSWER, Passing
from cortex.router.dialects import gate
from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.media import bounds

MAX_PARTS, MAX_HEADERS = 64, 8
"""Most parts of a form, and headers of a part."""
MAX_TEXTS = 1024 * 1024
"""Most bytes of all text fields together."""
MAX_PREAMBLE = 64 * 1024
"""Most bytes before the first part."""
MAX_BOUNDARY = 70  # RFC 2046 5.1.1
_LIST = re.compile(r"([a-z][a-z0-9_]{0,63})((?:\[[A-Za-z0-9_]{0,64}\]){0,3})")
_TYPE = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Rules(Struct, frozen=True):
    """The files of a form, with how many of each it may have, and the fields that it needs."""

    files: dict[str, int]
    needs: tuple[str, ...]


RULES: dict[Dialect, Rules] = {
    "transcriptions": Rules({"file": 1}, ("file",)),
    "translations": Rules({"file": 1}, ("file",)),
    "image_edits": Rules({"image": 16, "mask": 1}, ("image", "prompt")),
}


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a form from its content type. Raises BadRequest."""
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data":
        sent = f"'{kind[:100]}'" if kind else "none"
        raise BadRequest(f"expected the content type multipart/form-data, got {sent}")
    boundary: str = options.get("boundary", "")
    if not boundary or len(boundary) > MAX_BOUNDARY or not boundary.isascii() or not boundary.isprintable():
        raise BadRequest(f"the content type has no boundary of 1 to {MAX_BOUNDARY} characters")
    return boundary.encode()


class _Text(Struct, frozen=True):
    """A text field: its name as the client wrote it, the name without brackets, and its value."""

    full: str
    name: str
    value: bytes


class Form:
    """Reads a client's form with `feed()` and `close()`, which return the bytes for the worker that follow `head()`.

    All raise BadRequest. `dropped` has the names of the fields that do not pass on.
    """

    def __init__(self, kind: Dialect, boundary: bytes, own: bytes, model: str = "") -> None:
        """`own` is the boundary of the worker's form: random, so that no file contains it. `model` is the name in the
        query string, if any."""
        self._rules, self._own = RULES[kind], own
        self._parser = PushMultipartParser(
            boundary, max_header_count=MAX_HEADERS, max_segment_count=MAX_PARTS, header_charset="latin-1"
        )
        self._counts: Counter[str] = Counter()
        self._texts: list[_Text] = []
        self._size = self._parts = 0
        self.text_size = 0
        """Bytes of the text fields so far."""
        self._text: list[bytes] | None = None
        """The pieces of the text field that is being read; None in a file."""
        self._part: MultipartSegment
        self._full = self._name = ""
        """The part's name as the client wrote it, and without brackets."""
        self._passing: Passing | None = None
        self._dropped: dict[str, None] = {}
        self.model = model
        self.answers = 1
        self.is_whole = False

    @property
    def content_type(self) -> str:
        """The content type towards the worker."""
        return f"multipart/form-data; boundary={self._own.decode()}"

    @property
    def has_begun_a_file(self) -> bool:
        """Whether a part is a file."""
        return any(self._counts[name] for name in self._rules.files)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of the fields that do not pass on, so far."""
        return tuple(sorted(self._dropped))

    def head(self, model: str, passing: Passing) -> bytes:
        """Return the beginning of the worker's form: its name of the model, and the text fields so far."""
        self._passing = passing
        self._dropped.clear()
        fields = [b"".join(self._pass(text)) for text in self._texts]
        return b"".join((self._field("model", model.encode()), *fields))

    def feed(self, data: bytes) -> bytes:
        """Read a piece of the client's form."""
        self._size += len(data)
        if self.is_whole:
            return b""  # what follows the last boundary
        out: list[bytes] = []
        try:
            for event in self._parser.parse(data) if data else ():
                if isinstance(event, MultipartSegment):
                    out += self._begin(event)
                elif event is None:
                    out += self._end()
                else:
                    out += self._piece(event)
        except MultipartError as error:
            raise self._unreadable(error) from None
        if not self._parts and self._size > MAX_PREAMBLE:
            raise BadRequest(f"the form has no part in its first {MAX_PREAMBLE >> 10} KiB: is its boundary right?")
        return b"".join(out)

    def close(self) -> bytes:
        """End the client's form, and return the end of the worker's."""
        try:
            self._parser.close()
        except MultipartError:
            raise BadRequest("the form ends before its last boundary") from None
        for name in self._rules.needs:
            if not self._counts[name]:
                raise BadRequest("a file is required" if name in self._rules.files else "field required", name)
        if not self.model:
            raise BadRequest("field required", "model")
        self.is_whole = True
        return b"--%b--\r\n" % self._own

    def _begin(self, segment: MultipartSegment) -> Iterator[bytes]:
        """Begin a part."""
        self._parts += 1
        full = _utf8(segment.name or "", f"part {self._parts}")
        match = _LIST.fullmatch(full)
        name = match[1] if match else full
        self._part, self._full, self._name = segment, full, name
        self._counts[name] += 1
        if name in self._rules.files:
            if segment.filename is None:
                raise BadRequest("expected a file, with a file name", name)
            filename = _utf8(segment.filename, name, "file name")
            most = self._rules.files[name]
            if self._counts[name] > most:
                raise BadRequest("expected one file" if most == 1 else f"expected at most {most} files", name)
            self._text = None
            yield self._part_head(full, _file_name(filename), segment.content_type)
            return
        if segment.filename is not None:
            raise BadRequest(
                f"expected text, not a file; a file is sent as {_file_names(self._rules.files)}", _show(name)
            )
        if self._counts[name] > 1 and full == name:
            raise BadRequest("appears twice", _show(name))
        self._text = []

    def _piece(self, data: bytes) -> Iterator[bytes]:
        if self._text is None:
            yield data
            return
        self.text_size += len(data)
        if self.text_size > MAX_TEXTS:
            raise BadRequest(f"the form's text fields have more than {MAX_TEXTS >> 10} KiB", _show(self._name))
        self._text.append(data)

    def _end(self) -> Iterator[bytes]:
        """End a part."""
        if self._text is None:
            if not self._part.bytes_received:
                raise BadRequest("the file is empty", self._name)
            yield b"\r\n"
            return
        text = _Text(self._full, self._name, b"".join(self._text))
        try:
            value = text.value.decode()
        except UnicodeDecodeError:
            raise BadRequest("the text is not UTF-8", _show(text.name)) from None
        if text.name == "model":
            if not value:
                raise BadRequest("expected a name", "model")
            if self.model and value != self.model:
                raise BadRequest("the form and the query string name different models", "model")
            self.model = value
            return
        bounds.check_text(text.name, value)
        if text.name == "n" and value:
            self.answers = max(self.answers, int(value))  # the client may send `n[]` too
        if self._passing is None:
            self._texts.append(text)
        else:
            yield from self._pass(text)

    def _pass(self, text: _Text) -> Iterator[bytes]:
        """Yield a text field if it passes on."""
        assert self._passing is not None
        if text.name in self._passing.fields and _LIST.fullmatch(text.full):
            yield self._field(text.full, text.value)
        elif text.name in CHANGES_THE_ANSWER and text.value:
            raise gate.not_allowed(text.name)
        else:
            self._dropped[text.name] = None

    def _field(self, name: str, value: bytes) -> bytes:
        return b"".join((self._part_head(name), value, b"\r\n"))

    def _part_head(self, name: str, filename: str = "", content_type: str | None = None) -> bytes:
        lines = [f'--{self._own.decode()}\r\nContent-Disposition: form-data; name="{name}"']
        if filename:
            kind = content_type if content_type and _TYPE.fullmatch(content_type) else "application/octet-stream"
            lines.append(f'; filename="{filename}"\r\nContent-Type: {kind}')
        return "".join((*lines, "\r\n\r\n")).encode()

    def _unreadable(self, error: MultipartError) -> BadRequest:
        if not isinstance(error, ParserLimitReached):
            return BadRequest(f"the form cannot be read after part {self._parts}: {error}")
        if self._parts >= MAX_PARTS:
            return BadRequest(f"the form has more than {MAX_PARTS} parts")
        return BadRequest(f"part {self._parts + 1} of the form has too many or too long headers")


def _utf8(text: str, at: str, what: str = "name") -> str:
    """Return a text of UTF-8 that was read as Latin-1. Raises BadRequest."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        raise BadRequest(f"the {what} is not UTF-8", at) from None


def _show(name: str) -> str:
    """Return a client's name of a field, short and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in name[:64])


def _file_names(files: dict[str, int]) -> str:
    return " or ".join(f"`{name}`" for name in files)


def _file_name(sent: str) -> str:
    """Return a safe file name with the extension of the client's: engines choose a decoder by it.

    >>> _file_name("../../Grüße aus Köln.mp3")
    'Gr_e_aus_K_ln.mp3'
    """
    name = _UNSAFE.sub("_", sent.replace("\\", "/").rpartition("/")[2])[-100:].strip("._-")
    return name or "file"
