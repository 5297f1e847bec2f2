"""Files that people write with editors of other systems."""

from pathlib import Path

import pytest

from cortex.platform import settings_file, text_files
from cortex.router import live_catalogue

TEXT = '[[models]]\nid = "e"\nengine = "fake"\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_file_is_read_whatever_its_mark_and_line_ends(tmp_path: Path, encoding: str, line_end: str) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(TEXT.replace("\n", line_end).encode(encoding))

    assert text_files.read(path) == TEXT
    assert list(live_catalogue.load(path).functions) == ["e"]


def test_settings_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cortex.toml"
    path.write_bytes('[log]\nlevel = "debug"\n'.encode("utf-8-sig"))

    loaded, _ = settings_file.load(path, {})

    assert loaded.log.level == "debug"


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(b"\x80\x81")

    with pytest.raises(UnicodeDecodeError):
        text_files.read(path)
