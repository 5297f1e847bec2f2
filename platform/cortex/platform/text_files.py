"""Text files that people write: catalogues, settings, templates, secrets.

Editors of Windows begin them with a byte order mark, and PowerShell writes UTF-16, which the mark tells.
"""

import codecs
from pathlib import Path

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read(path: Path) -> str:
    """Return a file's text without its byte order mark. Raises OSError or UnicodeDecodeError."""
    data = path.read_bytes()
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
