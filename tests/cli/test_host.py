"""`cortex host events`: what it shows, and that an export is written whole or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cortex.cli import host
from cortex.cli.exits import Failed
from cortex.cli.fn import BEHIND_S, Drain
from cortex.functions.lifecycle import State
from cortex.platform.record import Tier
from cortex.router.api_types import HostsAnswer, HostView
from tests.support.factories import an_instance

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

    def hosts(self) -> HostsAnswer:
        return HostsAnswer(hosts=tuple(HostView(name=name, address="") for name in self._hosts))

    def host_events(self, name: str) -> Iterator[str]:
        assert name == "a"
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


def test_a_host_shows_the_ram_of_parked_instances_and_its_tiers() -> None:
    sleeper = an_instance("one", state=State.SLEEPING, parked=Tier.SLEEP, parked_mb=100, ram_mb=900)
    tiers = {Tier.SLEEP: "", Tier.FREEZE: "the driver is older than 580"}
    view = HostView(name="a", address="", park_ram_mb=4000, tiers=tiers, instances=(sleeper,))

    assert host.tier_lines(view) == [
        "parked instances: 900/4000 MiB of RAM; sleep: possible; freeze: the driver is older than 580"
    ]
    assert host.tier_lines(HostView(name="a", address="")) == []


def test_a_host_shows_the_tricks_of_starts_that_failed() -> None:
    failed = {"abc": {"eager": "the worker exited with 1 while starting"}, "def": {"full": "it crashed"}}

    assert host.trick_lines(HostView(name="a", address="", tricks_off=failed)) == [
        "started without 'eager': revision abc: the worker exited with 1 while starting",
        "started without a full one after a fast one: revision def: it crashed",
    ]
    assert host.trick_lines(HostView(name="a", address="")) == []


def test_a_router_that_is_behind_does_not_make_a_drain_a_cancelled_one() -> None:
    ends = Drain(100.0)

    assert not ends.was_cancelled(["ready", "ready"], 100.1)
    assert not ends.was_cancelled(["draining", "ready"], 100.2)
    assert ends.was_cancelled(["ready", "ready"], 100.3)
    assert Drain(100.0).was_cancelled(["ready"], 100.0 + BEHIND_S)
    assert not Drain(100.0).was_cancelled([], 200.0)
