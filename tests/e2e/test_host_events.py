"""The events of a running agent's scheduler: shown, exported, and replayed to the same decisions."""

import json
from pathlib import Path

import pytest

from tests.e2e.workers import TWO
from tests.support.replay import differences
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)
PROMPT = "a question that is not for others"


@pytest.mark.long
def test_an_export_of_a_running_agent_replays_to_the_same_decisions(stack: Stack, tmp_path: Path) -> None:
    eventually(
        lambda: "CatalogueChanged" in stack.cli("host", "events", "here", "-n", "1000").stdout,
        within_s=60,
        what="the agent to have the catalogue",
    )
    stack.cool("fake/cold")
    body = {"model": "fake/cold", "messages": [{"role": "user", "content": PROMPT}]}
    assert stack.http.post("/v1/chat/completions", json=body).is_success
    file = tmp_path / "events.jsonl"

    exported = stack.cli("host", "events", "--export", str(file))

    lines = file.read_bytes().splitlines()
    events = [line["event"]["type"] for line in map(json.loads, lines) if line["line"] == "event"]
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == f"here: {len(events)} events in {file}\n"
    assert {"CatalogueChanged", "EnsureRequest", "Spawned", "Answered", "FleetChange"} <= set(events)
    assert differences(lines) == []
    assert PROMPT.encode() not in file.read_bytes()


def test_the_table_shows_what_followed_from_each_event(stack: Stack) -> None:
    stack.cli("fn", "warm", "fake/cold")
    stack.cool("fake/cold")

    shown = stack.cli("host", "events", "here").stdout
    as_json = json.loads(stack.cli("host", "events", "here", "-n", "5", "--json").stdout)
    unknown = stack.cli("host", "events", "elsewhere")

    assert "CoolRequest" in shown
    assert "stopped: cool" in shown
    assert len(as_json) == 5
    assert unknown.returncode == 4
    assert "cortex host ls" in unknown.stderr
