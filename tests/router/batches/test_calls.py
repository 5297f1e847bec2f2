"""Calls of the folder, and the errors that requests get."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import Folder
from cortex.router.errors import FileNotStored, FilesFull

ID = "file-" + "0" * 24


@pytest.fixture
def calls() -> Iterator[FolderCalls]:
    """The threads of a router."""
    calls = FolderCalls()
    yield calls
    calls.close()


async def test_a_file_that_is_gone_is_named_by_its_id(calls: FolderCalls, tmp_path: Path) -> None:
    with pytest.raises(FileNotStored, match=f"'{ID}'"):
        await calls.call((tmp_path / f"{ID}.jsonl").open, "rb")


async def test_an_invalid_id_is_an_unknown_file(calls: FolderCalls, tmp_path: Path) -> None:
    with pytest.raises(FileNotStored, match=r"'\.\./x'"):
        await calls.call(Folder(tmp_path).file, "k1", "../x")


async def test_a_disk_error_names_no_path_to_the_client(calls: FolderCalls, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FilesFull) as refusal:
        await calls.call((tmp_path / "file" / "x").touch)

    assert str(tmp_path) not in refusal.value.fault().message
