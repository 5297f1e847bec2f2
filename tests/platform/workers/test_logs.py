"""The end of a worker's log, and the lines of it that hold a text."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.workers import log_files
from cortex.platform.workers.log_files import cut_off, forget_old, trim
from cortex.platform.workers.logs import MOST_FOUND, MOST_LINE, Holding, last_lines, searched


def drive(text: str, wire: bytes, size: int) -> list[bytes]:
    """Feed bytes in pieces of a size."""
    holding = Holding(text)
    found = [line for at in range(0, len(wire), size) for line in holding.feed(wire[at : at + size])]
    return found + holding.close()


@given(
    st.lists(st.text("abA é\r", max_size=12), max_size=12),
    st.text("abA é", min_size=1, max_size=3),
    st.integers(1, 40),
)
def test_lines_with_a_text_are_found_however_the_bytes_come(lines: list[str], text: str, size: int) -> None:
    wire = "\n".join(lines).encode()
    capitals = text != text.lower()
    expected = [li for li in wire.split(b"\n") if text.encode() in (li if capitals else li.lower())]

    found = drive(text, wire, size)

    assert [f.removesuffix(b"\n") for f in found] == expected


def test_capitals_count_only_when_the_text_has_some() -> None:
    wire = b"ERROR one\nerror two\n"

    assert drive("error", wire, 5) == [b"ERROR one\n", b"error two\n"]
    assert drive("ERROR", wire, 5) == [b"ERROR one\n"]


def test_a_pattern_is_only_a_text() -> None:
    assert drive("(a+)+$", b"aaaaaaaaaaaaaaaa!\nliteral (a+)+$ here\n", 7) == [b"literal (a+)+$ here\n"]


def test_a_line_without_end_is_not_kept_whole() -> None:
    holding = Holding("needle")
    for _ in range(100):
        assert holding.feed(b"x" * 8192) == []

    assert len(holding._rest) <= MOST_LINE + 8192


def test_the_last_matches_are_returned_and_what_was_cut_off_the_log_is_searched_too(tmp_path: Path) -> None:
    path = tmp_path / "i-1.log"
    cut_off(path).write_text("hit 1\nmiss\nhit 2\n")
    path.write_text("miss\nhit 3\nhit 4\n")

    found, _, end = searched(path, "hit", 3)

    assert found == [b"hit 2\n", b"hit 3\n", b"hit 4\n"]
    assert end == path.stat().st_size


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert searched(tmp_path / "none.log", "hit", 3)[0] == []
    assert last_lines(tmp_path / "none.log", 3) == 0


def test_a_log_that_large_is_searched_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    path.write_bytes(b"a" * 30 + b"\n" + (b"INFO nothing to see in this line of a log\n" * 400_000) + b"the Needle\n")

    began = time.process_time()
    found, _, _ = searched(path, "needle", 10)

    assert found == [b"the Needle\n"]
    assert time.process_time() - began < 2


@pytest.mark.parametrize(("lines", "expected"), [(1, b"c\n"), (2, b"b\nc\n"), (9, b"a\nb\nc\n")])
def test_the_last_lines_begin_where_they_should(tmp_path: Path, lines: int, expected: bytes) -> None:
    path = tmp_path / "i.log"
    path.write_bytes(b"a\nb\nc\n")

    assert path.read_bytes()[last_lines(path, lines) :] == expected


def test_a_log_that_grew_too_large_begins_anew_and_what_it_held_is_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 10)
    folder = tmp_path / "org-model"
    folder.mkdir()
    path, small = folder / "i-1.log", folder / "i-2.log"
    small.write_text("short")
    with path.open("ab") as writer:  # as a worker writes: it is not told
        writer.write(b"a long first line\n")
        writer.flush()
        trim(tmp_path)
        writer.write(b"second\n")

    assert cut_off(path).read_text() == "a long first line\n"
    assert (path.read_text(), small.read_text()) == ("second\n", "short")
    assert searched(path, "line", 5)[0] == [b"a long first line\n"]


def test_what_was_cut_off_a_log_is_forgotten_with_it(tmp_path: Path) -> None:
    for nth in range(5):
        path = tmp_path / f"i-{nth}.log"
        path.write_text("x")
        os.utime(path, (nth, nth))
        cut_off(path).write_text("x")

    forget_old(tmp_path, running={"i-4.log"})

    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "i-2.log", "i-2.log.1", "i-3.log", "i-3.log.1", "i-4.log", "i-4.log.1",
    ]  # fmt: skip


def test_a_search_holds_a_bounded_number_of_bytes_and_keeps_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "i-1.log"
    with path.open("wb") as log:
        for number in range(200):
            log.write(b"hit %d " % number + b"x" * 50_000 + b"\n")

    found, _, _ = searched(path, "hit", 10_000)

    assert sum(map(len, found)) <= MOST_FOUND
    assert len(found) == MOST_FOUND // len(found[-1])
    assert found[-1].startswith(b"hit 199 ")
