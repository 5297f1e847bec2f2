"""What the router makes of agents that do not answer."""

from pathlib import Path

import httpx
import pytest

from cortex.platform.agent_messages import Ensure
from cortex.platform.keys import FleetToken
from cortex.router.activation.agents import AgentAway, Agents, AgentUnreachable
from tests.support.factories import a_function


async def failure(error: Exception | None, folder: Path, answer: httpx.Response | None = None) -> AgentAway:
    """Return what asking an agent raises when its connection, or its answer, is like this."""

    def handle(request: httpx.Request) -> httpx.Response:
        if error is not None:
            raise error
        assert answer is not None
        return answer

    (folder / "token").write_text("a-token-of-the-fleet")
    agents = Agents(FleetToken(folder / "token"))
    agents._http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    try:
        with pytest.raises(AgentAway) as raised:
            await agents.ensure("http://host-a:13131", Ensure(a_function()))
    finally:
        await agents.close()
    return raised.value


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.PoolTimeout("")])
async def test_an_agent_that_was_never_reached_knows_nothing_of_the_start(error: Exception, tmp_path: Path) -> None:
    raised = await failure(error, tmp_path)

    assert isinstance(raised, AgentUnreachable)
    assert str(raised).startswith("the agent at http://host-a:13131 cannot be reached: ")
    assert not str(raised).endswith(": ")


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout(""), httpx.ReadError("reset"), httpx.RemoteProtocolError("broke off")]
)
async def test_an_agent_whose_answer_was_lost_may_have_started_something(error: Exception, tmp_path: Path) -> None:
    raised = await failure(error, tmp_path)

    assert not isinstance(raised, AgentUnreachable)
    assert not str(raised).endswith(": ")


@pytest.mark.parametrize("answer", [httpx.Response(500), httpx.Response(200, content=b"no JSON")])
async def test_an_answer_that_is_none_may_hide_a_start(answer: httpx.Response, tmp_path: Path) -> None:
    assert not isinstance(await failure(None, tmp_path, answer), AgentUnreachable)
