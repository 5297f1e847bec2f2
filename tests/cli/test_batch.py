"""`cortex batch submit`: where the results go."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cortex.cli.batch import batch
from cortex.cli.client import write_file
from cortex.cli.exits import Failed


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("{}\n")

    result = CliRunner().invoke(batch, ["submit", str(lines), "--output", str(tmp_path / "missing" / "answers")])

    assert isinstance(result.exception, Failed) or result.exit_code
    assert "missing is no folder that can be written" in (result.output + str(result.exception))


def test_a_full_disk_is_named_with_the_file() -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("this system has no /dev/full")

    with pytest.raises(Failed, match="/dev/full cannot be written: No space left on device"):
        write_file(Path("/dev/full"), [b"x"])


def test_a_broken_connection_is_no_fault_of_the_file(tmp_path: Path) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"one"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        write_file(tmp_path / "answers", breaks())
