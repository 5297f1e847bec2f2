"""Read-ahead fills the page cache with the weights and with no other files."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.platform.workers import readahead
from cortex.platform.workers.readahead import SPARE, WINDOW, read_ahead

PLENTY = 2**40


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model's folder: two files of weights and one beside them, none of them in the cache."""
    for name, size in (("a.safetensors", 3_000_000), ("b.safetensors", 1_000_000), ("notes.md", 50_000)):
        path = tmp_path / name
        path.write_bytes(os.urandom(size))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return tmp_path


def cached(path: Path) -> float:
    """How much of a file is in the page cache."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as data,
    ):
        pages = -(-len(data) // mmap.PAGESIZE)
        matches = (ctypes.c_ubyte * pages)()
        held = ctypes.c_char.from_buffer(data)
        assert ctypes.CDLL(None).mincore(ctypes.byref(held), ctypes.c_size_t(len(data)), matches) == 0
        del held
        return sum(page & 1 for page in matches) / pages


async def test_only_weight_files_are_read(weights: Path) -> None:
    if cached(weights / "a.safetensors") > 0.5:
        pytest.skip("this file system does not let go of its cache")

    done = await read_ahead(weights, lambda: True, lambda: PLENTY)

    assert done == 4_000_000
    assert [cached(weights / n) for n in ("a.safetensors", "b.safetensors")] == [1.0, 1.0]
    assert cached(weights / "notes.md") < 1.0


async def test_reading_stops_within_a_window_after_the_start_ends(tmp_path: Path) -> None:
    with (tmp_path / "m.gguf").open("wb") as file:
        file.truncate(5 * WINDOW)
    answers: Iterator[bool] = iter([True, True, False])

    assert await read_ahead(tmp_path / "m.gguf", lambda: next(answers), lambda: PLENTY) == 2 * WINDOW


async def test_nothing_is_read_when_memory_is_short(weights: Path) -> None:
    assert await read_ahead(weights, lambda: True, lambda: SPARE + 3_999_999) == 0


async def test_reading_stops_when_memory_gets_short(tmp_path: Path) -> None:
    with (tmp_path / "m.gguf").open("wb") as file:
        file.truncate(5 * WINDOW)
    left: Iterator[int] = iter([PLENTY, PLENTY, SPARE - 1])

    assert await read_ahead(tmp_path / "m.gguf", lambda: True, lambda: next(left)) == WINDOW


async def test_missing_weights_read_nothing(tmp_path: Path) -> None:
    assert await read_ahead(tmp_path / "none.gguf", lambda: True) == 0
    assert readahead.available() > 0
