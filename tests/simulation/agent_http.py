"""Calls of routers to simulated agents: a transport for httpx over the simulated network.

Messages are encoded and decoded as in the product; only Litestar's routing is left out.
"""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import msgspec

from cortex.platform.agent.loop import Agent
from cortex.platform.agent_messages import Accepted, CatalogueUpdate, Cool, Ensure, PlanRequest, Rejected
from cortex.platform.keys import HostToken
from tests.simulation.machine import Machine
from tests.simulation.network import Cut, Network
from tests.simulation.virtual_time import Phase, VirtualLoop, settle

OnEnsure = Callable[[str, str, Ensure, Accepted | Rejected, frozenset[str]], None]


class AgentServer:
    """The HTTP API of the agent on one machine. `agent` is the present one; None: none listens."""

    def __init__(self, machine: Machine, token: HostToken) -> None:
        self.machine, self._token = machine, token
        self.agent: Agent | None = None
        self.on_ensure: OnEnsure = lambda *_: None

    async def answer(self, caller: str, request: httpx.Request) -> httpx.Response:
        """Carry out one request, in the agent's process."""
        agent = self.agent
        assert agent is not None
        own = agent.scheduler.record()
        bearer = request.headers["Authorization"].removeprefix("Bearer ")
        if not self._token.opens(bearer, own.address):
            return httpx.Response(401)
        body = request.content
        result: object
        match request.url.path:
            case "/functions/ensure":
                wanted = msgspec.json.decode(body, type=Ensure)
                before = frozenset(i.id for i in own.instances)
                result = answer = await agent.ensure(wanted)
                self.on_ensure(caller, self.machine.name, wanted, answer, before)
            case "/functions/plan":
                result = await agent.plan(msgspec.json.decode(body, type=PlanRequest).function)
            case "/functions/cool":
                cool = msgspec.json.decode(body, type=Cool)
                result = {"instances": await agent.cool(cool.function, at_once=cool.at_once)}
            case "/drain":
                result = {"instances": await agent.drain()}
            case "/catalogue":
                update = msgspec.json.decode(body, type=CatalogueUpdate)
                await agent.apply_catalogue(update.catalogue, update.digest)
                result = {"digest": update.digest}
            case _:
                return httpx.Response(404)
        return httpx.Response(200, content=msgspec.json.encode(result))


class Transport(httpx.AsyncBaseTransport):
    """A router's connections to all agents."""

    def __init__(self, loop: VirtualLoop, network: Network, place: str, servers: dict[str, AgentServer]) -> None:
        self._loop, self._network, self._place, self._servers = loop, network, place, servers

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises httpx's errors."""
        limits = request.extensions["timeout"]
        server = self._servers[request.url.host]
        outward = self._network.leg(self._place, server.machine.name)
        process = server.machine.agent
        listens = server.agent is not None and process is not None and process.phase is not Phase.DEAD
        if outward is Cut.SILENT:
            await asyncio.sleep(limits["connect"])
            raise httpx.ConnectTimeout("")
        if outward is Cut.REFUSED or not listens:
            await asyncio.sleep(0.0005)
            raise httpx.ConnectError("All connection attempts failed")
        answer: asyncio.Future[httpx.Response] = self._loop.create_future()
        self._loop.outside(outward, self._arrive, server, request, answer)
        try:
            async with asyncio.timeout(limits["read"]):
                return await answer
        except TimeoutError:
            raise httpx.ReadTimeout("") from None

    def _arrive(self, server: AgentServer, request: httpx.Request, answer: "asyncio.Future[httpx.Response]") -> None:
        process = server.machine.agent
        if server.agent is None or process is None or process.phase is Phase.DEAD:
            _fail(answer)
            return

        async def serve(work: Awaitable[httpx.Response]) -> None:
            response = await work
            back = self._network.leg(server.machine.name, self._place)
            if isinstance(back, float):
                self._loop.outside(back, settle, answer, response)
            elif back is Cut.REFUSED:
                _fail(answer)

        task = process.start(serve(server.answer(self._place, request)), name=f"serve {self._place}")
        task.add_done_callback(lambda t: _fail(answer) if t.cancelled() or t.exception() else None)
        process.ended.add_done_callback(lambda _: _fail(answer))


def _fail(answer: "asyncio.Future[httpx.Response]") -> None:
    if not answer.done():
        answer.set_exception(httpx.RemoteProtocolError("Server disconnected without sending a response."))
        answer.exception()
