"""The router's client to agents: it calls `ensure`, never "if not running then start"."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from cortex.functions.catalogue import Catalogue
from cortex.functions.estimate import Estimate
from cortex.functions.spec import Function
from cortex.platform.agent_messages import (
    ANSWER_S,
    Accepted,
    AdapterState,
    CatalogueUpdate,
    ContextAnswer,
    ContextFailure,
    Cool,
    Ensure,
    EnsureAdapter,
    Fetching,
    LeaveSeat,
    Neighbour,
    Neighbours,
    PlacementPlan,
    PlanRequest,
    Prefetch,
    Rejected,
    Remove,
    RemoveContexts,
    Removed,
    RestoreContext,
    Seat,
    Stored,
    TakeSeat,
)
from cortex.platform.keys import FleetToken
from cortex.platform.record import HostRecord, SavedContext
from cortex.platform.serving.trust import trust

T = TypeVar("T")
TIMEOUT_S = ANSWER_S
CONNECT_S = 5.0
HUB_TIMEOUT_S = 60.0
"""Timeout of calls for which the agent calls its hub."""
SEAT_TIMEOUT_S = 3.0
"""Timeout of taking or leaving a seat: the agent answers within a second."""
RESTORE_TIMEOUT_S = 65.0
"""Timeout of restoring a saved conversation. The agent gives up earlier: once the prompt would be processed."""


class AgentUnavailable(Exception):
    """The agent did not answer, or its answer is invalid. It may have carried out the request."""


class AgentUnreachable(AgentUnavailable):
    """No connection to the agent could be opened, so it did not receive the request."""


class AgentRefused(Exception):
    """The agent rejected the request; the text has the reason."""

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


class Agents:
    """Calls all agents, each with its own token, derived from the name and the address in its host's record.

    With `ca_file` the fleet uses TLS: an agent at an `http://` address is then not called.
    """

    def __init__(self, token: FleetToken, ca_file: str = "") -> None:
        self._token = token
        self._only_tls = bool(ca_file)
        self._http = httpx.AsyncClient(
            verify=trust(ca_file),
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            trust_env=False,
        )

    def _auth(self, host: HostRecord) -> Callable[[httpx.Request], httpx.Request]:
        def sign(request: httpx.Request) -> httpx.Request:
            request.headers["Authorization"] = f"Bearer {self._token.for_agent(host.name, host.address)}"
            return request

        return sign

    @contextmanager
    def _translate_errors(self, host: HostRecord) -> Iterator[None]:
        address = host.address
        if self._only_tls and not address.lower().startswith("https://"):
            raise AgentUnreachable(
                f"the agent of {host.name} is not called: its address {address} is not https, and `ca_file` is set "
                "here; give that agent `[agent] tls_cert` and `tls_key`, or this router no `ca_file`"
            )
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise AgentUnreachable(f"the agent at {address} cannot be reached: {why}") from error
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            why = str(error) or type(error).__name__
            raise AgentUnavailable(f"the agent at {address} did not answer: {why}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ensure(self, host: HostRecord, request: Ensure) -> Accepted | Rejected:
        """Request an instance of a function. Raises AgentUnavailable."""
        with self._translate_errors(host):
            answer = await self._send(host, "POST", "/functions/ensure", request)
            return msgspec.json.decode(answer, type=Accepted | Rejected)

    async def ensure_adapter(self, host: HostRecord, request: EnsureAdapter) -> AdapterState:
        """Request a variant's adapter on an instance. Raises AgentUnavailable."""
        with self._translate_errors(host):
            answer = await self._send(host, "POST", "/functions/adapter", request)
            return msgspec.json.decode(answer, type=AdapterState)

    async def plan(self, host: HostRecord, function: Function) -> PlacementPlan | Rejected:
        """Return what `ensure` would do. Raises AgentUnavailable."""
        with self._translate_errors(host):
            answer = await self._send(host, "POST", "/functions/plan", PlanRequest(function))
            return msgspec.json.decode(answer, type=PlacementPlan | Rejected)

    async def drain(self, host: HostRecord) -> Sequence[str]:
        """Drain a host. Return the instances that end. Raises AgentUnavailable."""
        with self._translate_errors(host):
            answer = await self._send(host, "POST", "/drain", None)
            return msgspec.json.decode(answer, type=dict[str, list[str]])["instances"]

    async def cool(
        self, host: HostRecord, function: str, *, at_once: bool = False, park: bool = False
    ) -> Sequence[str]:
        """End a function's instances, or park them. Raises AgentUnavailable."""
        with self._translate_errors(host):
            answer = await self._send(host, "POST", "/functions/cool", Cool(function, at_once, park))
            return msgspec.json.decode(answer, type=dict[str, list[str]])["instances"]

    async def forget(self, host: HostRecord, function: str) -> None:
        """Drop an agent's measurements of a function. Raises AgentUnavailable."""
        with self._translate_errors(host):
            await self._send(host, "POST", f"/functions/forget?function={quote(function, safe='')}", None)

    async def send_catalogue(self, host: HostRecord, catalogue: Catalogue, digest: str) -> None:
        """Send the catalogue to an agent. Raises AgentUnavailable."""
        with self._translate_errors(host):
            await self._send(host, "PUT", "/catalogue", CatalogueUpdate(catalogue, digest))

    async def send_neighbours(self, host: HostRecord, neighbours: Neighbours) -> None:
        """Tell an agent its neighbours. Raises AgentUnavailable, also for one of a release without neighbours."""
        with self._translate_errors(host):
            await self._send(host, "PUT", "/neighbours", neighbours)

    def neighbours_of(self, host: HostRecord, fleet: Iterable[HostRecord]) -> Neighbours:
        """Return the other hosts of the fleet, each with the token for what it offers."""
        others = sorted((h.name, h.address) for h in fleet if h.name != host.name)
        return Neighbours(
            hosts=tuple(
                Neighbour(
                    host=name,
                    address=address,
                    token=self._token.for_neighbours(name, address),
                    seal=self._token.seal_between(name, host.name),
                )
                for name, address in others
            )
        )

    async def logs(self, host: HostRecord, path: str, query: Mapping[str, str | int]) -> httpx.Response | None:
        """Open the stream of a worker's log on a host; the caller closes it. None when there is no log.

        Raises AgentUnavailable.
        """
        with self._translate_errors(host):
            timeout = httpx.Timeout(TIMEOUT_S, read=None)
            request = self._http.build_request("GET", host.address + path, params=dict(query), timeout=timeout)
            answer = await self._http.send(request, stream=True, auth=self._auth(host))
            if answer.status_code == httpx.codes.OK:
                return answer
            await answer.aclose()
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            return None

    # Weights.

    async def list_weights(self, host: HostRecord) -> list[Stored]:
        """Return the weights on a host. Raises AgentUnavailable."""
        return await self._call(host, "GET", "/weights", None, list[Stored])

    async def remove_weights(self, host: HostRecord, request: Remove) -> Removed:
        """Remove stored weights. Raises AgentUnavailable or AgentRefused."""
        return await self._call(host, "POST", "/weights/remove", request, Removed)

    async def prefetch(self, host: HostRecord, function: Function) -> str:
        """Fetch a function's weights; return the job's id. Raises AgentUnavailable or AgentRefused."""
        answer = await self._call(host, "POST", "/weights/fetch", Prefetch(function), dict[str, str])
        return answer["job"]

    async def estimate(self, host: HostRecord, function: Function) -> Estimate:
        """Return an estimate of a function's memory. Raises AgentUnavailable or AgentRefused."""
        request = Prefetch(function)
        return await self._call(host, "POST", "/weights/estimate", request, Estimate, within_s=HUB_TIMEOUT_S)

    async def jobs(self, host: HostRecord) -> list[Fetching]:
        """Return a host's fetches. Raises AgentUnavailable or AgentRefused."""
        return await self._call(host, "GET", "/jobs", None, list[Fetching])

    async def cancel_job(self, host: HostRecord, job: str) -> None:
        """Stop a fetch. Raises AgentUnavailable or AgentRefused."""
        await self._call(host, "POST", f"/jobs/{quote(job, safe='')}/cancel", None, dict[str, str])

    # Saved conversations.

    async def take_seat(self, host: HostRecord, request: TakeSeat) -> Seat:
        """Request a slot for a request. Raises AgentUnavailable or AgentRefused."""
        return await self._call(host, "POST", "/contexts/seat", request, Seat, within_s=SEAT_TIMEOUT_S)

    async def leave_seat(self, host: HostRecord, request: LeaveSeat) -> None:
        """End a seat. Raises AgentUnavailable or AgentRefused."""
        await self._call(host, "POST", "/contexts/leave", request, dict[str, str], within_s=SEAT_TIMEOUT_S)

    async def restore_context(self, host: HostRecord, request: RestoreContext) -> ContextAnswer:
        """Restore a saved conversation into a slot of an instance. Raises AgentUnavailable or AgentRefused."""
        return await self._call(host, "POST", "/contexts/restore", request, ContextAnswer, within_s=RESTORE_TIMEOUT_S)

    async def context_failed(self, host: HostRecord, failure: ContextFailure) -> None:
        """Report that a restored conversation brought nothing. Raises AgentUnavailable or AgentRefused."""
        await self._call(host, "POST", "/contexts/failed", failure, dict[str, str])

    async def remove_contexts(self, host: HostRecord, request: RemoveContexts) -> list[SavedContext]:
        """Remove saved conversations; return those. Raises AgentUnavailable or AgentRefused."""
        return await self._call(host, "POST", "/contexts/remove", request, list[SavedContext])

    async def _call(
        self, host: HostRecord, method: str, path: str, body: Any, kind: type[T], *, within_s: float = TIMEOUT_S
    ) -> T:
        with self._translate_errors(host):
            content = msgspec.json.encode(body) if body else None
            answer = await self._http.request(
                method, host.address + path, content=content, timeout=within_s, auth=self._auth(host)
            )
            if answer.status_code in (400, 404, 422, 503):
                raise AgentRefused(str(answer.json().get("detail", answer.text)), answer.status_code)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=kind)

    async def _send(self, host: HostRecord, method: str, path: str, body: Any) -> bytes:
        answer = await self._http.request(
            method, host.address + path, content=msgspec.json.encode(body), auth=self._auth(host)
        )
        answer.raise_for_status()
        return answer.content
