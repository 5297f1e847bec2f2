"""Files that people write with editors of other systems."""

import os
from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x81", "line 1: byte 0x80 is not UTF-8: save the file as UTF-8"),
        (b'id = "a"\nname = "\xe9"\n', "line 2: byte 0xe9 is not UTF-8: save the file as UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_an_error_with_its_line_and_what_to_do(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(data)

    with pytest.raises(UnicodeDecodeError) as caught:
        text_files.read(path)

    assert str(caught.value) == message


async def test_a_catalogue_that_becomes_a_pipe_or_a_device_is_refused_and_read_again_when_it_is_a_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "models.toml"
    path.write_text(TEXT)
    live, problems = live_catalogue.LiveCatalogue(path), []

    replacements: list[Callable[[], None]] = [lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")]
    for replace in replacements:
        path.unlink()
        replace()
        await live.check()
        await live.check()
        problems.append(live.problem)
    path.unlink()
    path.write_text(TEXT + "# again")
    await live.check()
    await live.check()

    assert all("Not a regular file" in problem for problem in problems)
    assert (live.problem, list(live.catalogue.functions)) == ("", ["e"])
