"""An agent with a policy runs nothing else, even for a caller with the fleet token."""

from pathlib import Path

import msgspec
import pytest

from cortex.functions.spec import Engine, Function
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.scheduling.placement import When
from tests.e2e.conftest import FAKE
from tests.e2e.legacy.agents import Agent
from tests.support.stack import eventually, own_redis


@pytest.mark.long
def test_with_the_token_only_listed_programs_can_be_started(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    listed = Function(id="f/listed", engine=Engine.COMMAND, command=(*FAKE, "--answer", "yes"), vram_mb=10)
    other = Function(id="f/other", engine=Engine.COMMAND, command=("touch", str(mark)), vram_mb=10)
    loaded = msgspec.structs.replace(listed, id="f/loaded", env={"PYTHONPATH": str(tmp_path)})

    with own_redis(tmp_path) as url:
        agent = Agent(tmp_path / "agent", url, "a", commands=[" ".join(FAKE[:3])])
        try:
            answers = {}
            for function in (listed, other, loaded):
                answer = agent.http.post("/functions/ensure", content=msgspec.json.encode(Ensure(function)))
                answers[function.id] = msgspec.json.decode(answer.content, type=Accepted | Rejected)
            eventually(lambda: agent.status("f/listed") == "loaded", within_s=20, what="the listed program to run")
        finally:
            agent.end()

    assert isinstance(answers["f/listed"], Accepted)
    for name, setting in (("f/other", "`[agent] commands`"), ("f/loaded", "`[agent] allow_code`")):
        refused = answers[name]
        assert isinstance(refused, Rejected)
        assert (refused.when, setting in refused.reason) == (When.NEVER, True)
    assert not mark.exists()
