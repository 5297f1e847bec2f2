"""The agent's state file: what it says is read as far as it is understood."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.functions.spec import Engine, Function
from cortex.platform.agent import state_file
from cortex.platform.scheduling.kept import AgentState, Kept, Weights
from tests.support.factories import an_instance

STATE = AgentState(
    workers=(
        Kept(
            an_instance("one", function="org/one"),
            Function(id="org/one", engine=Engine.FAKE),
            Weights(path="/w", size_mb=1),
        ),
    )
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host.json"


def test_what_was_written_is_read(path: Path) -> None:
    state_file.write(path, STATE)

    assert state_file.read(path) == STATE


def test_what_only_a_later_release_knows_is_left_out_and_its_workers_are_kept(path: Path) -> None:
    later: Any = json.loads(msgspec.json.encode(STATE))
    later["workers"][0]["function"] |= {"of_later": 1, "sampling": {"of_later": 2}}
    later["workers"][0]["instance"]["of_later"] = {"a": 1}
    later["of_later"] = []
    path.write_text(json.dumps(later))

    assert state_file.read(path) == STATE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"workers": 3}', '{"workers": [{"function": []}]}'])
def test_what_cannot_be_understood_holds_nothing(path: Path, text: str) -> None:
    path.write_text(text)

    assert state_file.read(path) == AgentState()
