"""What the router makes of agents that do not answer."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trustme
from msgspec.structs import replace

from cortex.platform.agent_messages import Ensure, Neighbour, Neighbours
from cortex.platform.keys import FleetToken, agent_token, host_token, neighbour_seal, neighbour_token
from cortex.platform.record import HostRecord
from cortex.router.activation.agents import Agents, AgentUnavailable, AgentUnreachable
from tests.support.factories import a_function, a_host


async def failure(error: Exception | None, folder: Path, answer: httpx.Response | None = None) -> AgentUnavailable:
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
        with pytest.raises(AgentUnavailable) as raised:
            await agents.ensure(a_host(), Ensure(a_function()))
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


class Listener:
    """An HTTP transport that notes what is sent, and answers with what no agent says."""

    def __init__(self, folder: Path, ca_file: str = "") -> None:
        (folder / "token").write_text("a-token-of-the-fleet\nan-older-one")
        self.agents = Agents(FleetToken(folder / "token"), ca_file)
        self.agents._http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        self.authorizations: list[str] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.authorizations.append(request.headers["authorization"])
        return httpx.Response(500)

    async def call(self, host: HostRecord) -> AgentUnavailable:
        """Call every kind of route of an agent; return the last failure."""
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: self.agents.ensure(host, Ensure(a_function())),
            lambda: self.agents.drain(host),
            lambda: self.agents.jobs(host),
            lambda: self.agents.logs(host, "/logs", {"lines": 1}),
        ]
        for call in calls:
            with pytest.raises(AgentUnavailable) as raised:
                await call()
        return raised.value


async def test_an_agent_gets_a_token_that_opens_it_alone_at_its_address_alone(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    host = a_host()
    elsewhere = replace(host, address="http://forged:1")

    await listener.call(host)
    await listener.call(elsewhere)

    own, forged = (
        f"Bearer {agent_token(host_token('a-token-of-the-fleet', h.name), h.address)}" for h in (host, elsewhere)
    )
    assert listener.authorizations == [own] * 4 + [forged] * 4
    assert own != forged


@pytest.mark.parametrize("address", ["http://host-a:13131", "HTTP://host-a:13131", "ws://host-a", "host-a"])
async def test_with_a_ca_file_no_agent_is_called_but_by_tls(tmp_path: Path, address: str) -> None:
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    listener = Listener(tmp_path, str(tmp_path / "ca.pem"))

    failure = await listener.call(replace(a_host(), address=address))

    assert isinstance(failure, AgentUnreachable)
    assert f"its address {address} is not https, and `ca_file` is set" in str(failure)
    assert listener.authorizations == []


async def test_with_a_ca_file_an_agent_with_tls_is_called(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    listener = Listener(tmp_path, str(tmp_path / "ca.pem"))

    await listener.call(replace(a_host(), address="https://host-a:13131"))

    assert len(listener.authorizations) == 4


async def test_a_host_is_told_the_others_each_with_a_token_that_opens_only_what_that_one_offers(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-the-fleet")
    agents = Agents(FleetToken(tmp_path / "token"))
    one, two = (replace(a_host(), name=name, address=f"http://{name}:13131") for name in ("one", "two"))

    result = agents.neighbours_of(one, (one, two))
    await agents.close()

    own, address = host_token("a-token-of-the-fleet", "two"), "http://two:13131"
    token, seal = neighbour_token(own, address), neighbour_seal(own, "one")
    assert result == Neighbours(hosts=(Neighbour(host="two", address=address, token=token, seal=seal),))
