"""`cortex host events`: what it shows, and that an export is written whole or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cortex.cli import host
from cortex.cli.exits import Failed

CHECKPOINT = json.dumps({"line": "checkpoint", "now": 1.0, "state": {}}, separators=(",", ":"))
READING = json.dumps({"line": "event", "now": 1.0, "event": {"type": "FleetChange", "routers": {}}})
EVICTED = {"type": "Decision", "what": "evicted", "why": "for org/next", "function": "f", "instance": "one"}
ENSURE = json.dumps(
    {
        "line": "event",
        "now": 2.0,
        "event": {"type": "EnsureRequest", "instance": "one"},
        "effects": [EVICTED, {"type": "Spawn"}],
    }
)


class Fleet:
    """A router with these hosts, whose events are these lines."""

    def __init__(self, *lines: str, hosts: tuple[str, ...] = ("a",), breaks: bool = False) -> None:
        self._lines, self._hosts, self._breaks = lines, hosts, breaks

    def every_host(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in self._hosts]

    def lines(self, path: str, query: dict[str, Any]) -> Iterator[str]:
        assert path == "/admin/hosts/a/events"
        yield from self._lines
        if self._breaks:
            raise Failed("the connection broke")


def run(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(host, "Router", lambda: fleet)
    return CliRunner().invoke(host.events, arguments)


def test_the_table_leaves_out_readings_from_which_nothing_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(Fleet(CHECKPOINT, READING, ENSURE), monkeypatch).output.splitlines()

    assert len(shown) == 2
    assert "EnsureRequest" in shown[1]
    assert "evicted: for org/next, spawn" in shown[1]


def test_without_a_name_there_must_be_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(Fleet(hosts=("a", "b")), monkeypatch)

    assert result.exit_code == 1
    assert "there are 2 hosts: a, b" in str(result.exception)


def test_an_export_has_every_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"

    result = run(Fleet(CHECKPOINT, READING, ENSURE), monkeypatch, "a", "--export", str(file))

    assert result.output == f"a: 2 events in {file}\n"
    assert file.read_text().splitlines() == [CHECKPOINT, READING, ENSURE]


def test_an_export_that_breaks_off_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(Fleet(CHECKPOINT, breaks=True), monkeypatch, "a", "--export", str(tmp_path / "events.jsonl"))

    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_to_a_folder_that_does_not_exist_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(Fleet(CHECKPOINT), monkeypatch, "a", "--export", str(tmp_path / "none" / "events.jsonl"))

    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in str(result.exception)
