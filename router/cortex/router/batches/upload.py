"""An incremental parser of the file in a `multipart/form-data` form, without I/O: `feed()` and `close()`.

The file's bytes are returned in pieces for the caller to write; other fields are small and stay in memory.
"""

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from cortex.router.dialects.core.errors import BadRequest, Kind

MOST_FIELDS, LONGEST_FIELD = 16, 4096


class Upload:
    """One form with a field `file`. Raises BadRequest for anything else."""

    def __init__(self, content_type: str, most: int) -> None:
        """`most` is the largest file to accept, in bytes."""
        kind, options = parse_options_header(content_type)
        if kind != "multipart/form-data" or not options.get("boundary"):
            raise BadRequest("send the file as multipart/form-data, with the fields `purpose` and `file`")
        self.fields: dict[str, str] = {}
        self.name = ""
        self.size = 0
        self._most = most
        self._has_file = False
        self._segment: MultipartSegment | None = None
        self._value = b""
        try:
            self._parser = PushMultipartParser(options["boundary"], max_segment_count=MOST_FIELDS)
        except MultipartError as error:
            raise BadRequest(f"the form cannot be read: {error}") from None

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the form; return those of the file."""
        pieces: list[bytes] = []
        try:
            for event in self._parser.parse(data):
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event is None:
                    self._end()
                elif self._segment is not None and self._segment.name == "file":
                    self.size += len(event)
                    if self.size > self._most:
                        text = f"the file exceeds {self._most >> 20} MiB ([gateway] file_max_mb)"
                        raise BadRequest(text, kind=Kind.BODY_TOO_BIG)
                    pieces.append(bytes(event))
                else:
                    self._value += event
                    if len(self._value) > LONGEST_FIELD:
                        raise BadRequest(f"a field of the form has more than {LONGEST_FIELD} bytes")
        except (ParserLimitReached, MultipartError) as error:
            raise BadRequest(f"the form cannot be read: {error}") from None
        return pieces

    def close(self) -> None:
        """End the form."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise BadRequest(f"the form is incomplete: {error}") from None
        if not self._has_file:
            raise BadRequest("the form has no field `file`", param="file")

    def _begin(self, segment: MultipartSegment) -> None:
        self._segment, self._value = segment, b""
        if segment.name == "file":
            if self._has_file:
                raise BadRequest("the form has two files", param="file")
            self._has_file, self.name = True, (segment.filename or "")[:200]

    def _end(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None and segment.name != "file":
            self.fields[segment.name] = self._value.decode("utf-8", "replace")
