"""The last lines of a worker's log, and its lines with a text."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.agent.routes.logs import MOST_LINE, MOST_MATCHES_BYTES, LineFilter, last_lines, search
from cortex.platform.workers import log_files
from cortex.platform.workers.log_files import earlier_part, remove_old, trim


def drive(text: str, wire: bytes, size: int) -> list[bytes]:
    """Feed bytes in pieces of a size."""
    holding = LineFilter(text)
    matches = [line for at in range(0, len(wire), size) for line in holding.feed(wire[at : at + size])]
    return matches + holding.close()


@given(
    st.lists(st.text("abA é\r", max_size=12), max_size=12),
    st.text("abA é", min_size=1, max_size=3),
    st.integers(1, 40),
)
def test_matching_lines_are_found_in_chunks_of_any_size(lines: list[str], text: str, size: int) -> None:
    wire = "\n".join(lines).encode()
    capitals = text != text.lower()
    expected = [li for li in wire.split(b"\n") if text.encode() in (li if capitals else li.lower())]

    result = drive(text, wire, size)

    assert [f.removesuffix(b"\n") for f in result] == expected


def test_case_matters_only_when_the_text_has_capitals() -> None:
    wire = b"ERROR one\nerror two\n"

    assert drive("error", wire, 5) == [b"ERROR one\n", b"error two\n"]
    assert drive("ERROR", wire, 5) == [b"ERROR one\n"]


def test_a_pattern_is_matched_literally() -> None:
    assert drive("(a+)+$", b"aaaaaaaaaaaaaaaa!\nliteral (a+)+$ here\n", 7) == [b"literal (a+)+$ here\n"]


def test_an_endless_line_is_split() -> None:
    holding = LineFilter("needle")
    for _ in range(100):
        assert holding.feed(b"x" * 8192) == []

    assert len(holding._rest) <= MOST_LINE + 8192


def test_a_search_returns_the_last_matches_and_includes_the_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "i-1.log"
    earlier_part(path).write_text("hit 1\nmiss\nhit 2\n")
    path.write_text("miss\nhit 3\nhit 4\n")

    result, _, end = search(path, "hit", 3)

    assert result == [b"hit 2\n", b"hit 3\n", b"hit 4\n"]
    assert end == path.stat().st_size


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert search(tmp_path / "none.log", "hit", 3)[0] == []
    assert last_lines(tmp_path / "none.log", 3) == 0


def test_a_large_log_is_searched_quickly(tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    path.write_bytes(b"a" * 30 + b"\n" + (b"INFO nothing to see in this line of a log\n" * 400_000) + b"the Needle\n")

    began = time.process_time()
    result, _, _ = search(path, "needle", 10)

    assert result == [b"the Needle\n"]
    assert time.process_time() - began < 2


@pytest.mark.parametrize(("lines", "expected"), [(1, b"c\n"), (2, b"b\nc\n"), (9, b"a\nb\nc\n")])
def test_the_offset_of_the_last_lines_is_exact(tmp_path: Path, lines: int, expected: bytes) -> None:
    path = tmp_path / "i.log"
    path.write_bytes(b"a\nb\nc\n")

    assert path.read_bytes()[last_lines(path, lines) :] == expected


def test_a_log_that_grew_too_large_is_rotated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 10)
    folder = tmp_path / "org-model"
    folder.mkdir()
    path, small = folder / "i-1.log", folder / "i-2.log"
    small.write_text("short")
    with path.open("ab") as writer:  # a worker appends
        writer.write(b"a long first line\n")
        writer.flush()
        trim(tmp_path)
        writer.write(b"second\n")

    assert earlier_part(path).read_text() == "a long first line\n"
    assert (path.read_text(), small.read_text()) == ("second\n", "short")
    assert search(path, "line", 5)[0] == [b"a long first line\n"]


def test_a_rotated_file_is_removed_with_its_log(tmp_path: Path) -> None:
    for nth in range(5):
        path = tmp_path / f"i-{nth}.log"
        path.write_text("x")
        os.utime(path, (nth, nth))
        earlier_part(path).write_text("x")

    remove_old(tmp_path, running={"i-4.log"})

    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "i-2.log", "i-2.log.1", "i-3.log", "i-3.log.1", "i-4.log", "i-4.log.1",
    ]  # fmt: skip


def test_a_search_is_bounded_in_bytes_and_returns_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "i-1.log"
    with path.open("wb") as log:
        for number in range(200):
            log.write(b"hit %d " % number + b"x" * 50_000 + b"\n")

    result, _, _ = search(path, "hit", 10_000)

    assert sum(map(len, result)) <= MOST_MATCHES_BYTES
    assert len(result) == MOST_MATCHES_BYTES // len(result[-1])
    assert result[-1].startswith(b"hit 199 ")
