"""Text files that people write: catalogues, settings, templates, secrets.

Editors of Windows begin them with a byte order mark, and PowerShell writes UTF-16, which the mark tells.
"""

import codecs
import errno
import os
import stat
from pathlib import Path

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class NotText(UnicodeDecodeError):
    """A file is not text: the message has the line, and what to do."""

    def __str__(self) -> str:
        line = self.object.count(b"\n", 0, self.start) + 1
        return (
            f"line {line}: byte 0x{self.object[self.start]:02x} is not {self.encoding.upper()}: save the file as UTF-8"
        )


def read(path: Path) -> str:
    """Return a file's text without its byte order mark. Raises OSError or NotText."""
    return _text(path.read_bytes())


def read_regular(path: Path) -> str:
    """As `read`, but only of a regular file: opening a pipe may never end, and neither may reading a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _text(file.read())
    finally:
        os.close(descriptor)


def _text(data: bytes) -> str:
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise NotText(*error.args) from None
