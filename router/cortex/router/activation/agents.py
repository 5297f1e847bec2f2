"""The router's client to agents: say `ensure`, never "if not running then start"."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    CatalogueUpdate,
    Cool,
    Ensure,
    PlacementPlan,
    PlanRequest,
    Prefetch,
    Rejected,
    Remove,
    Removed,
    Stored,
)
from cortex.platform.keys import FleetToken
from cortex.platform.record import HostRecord
from cortex.platform.serving.trust import trust

T = TypeVar("T")
TIMEOUT_S = ANSWER_S
CONNECT_S = 5.0
HUB_TIMEOUT_S = 60.0
"""For what an agent asks its hub about."""


class AgentUnavailable(Exception):
    """The agent did not answer, or not as an agent does. It may have done what it was told all the same."""


class AgentUnreachable(AgentUnavailable):
    """No connection to the agent came about, so it knows nothing of what it was to do."""


class AgentRefused(Exception):
    """The agent answered that it will not, or cannot; the text says why."""

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


class Agents:
    """All agents. Each gets a token of its own, by the name and the address in its host's record.

    With `ca_file` the fleet speaks TLS: then an agent at an `http://` address is not called at all.
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
        def signed(request: httpx.Request) -> httpx.Request:
            request.headers["Authorization"] = f"Bearer {self._token.for_host(host.name, host.address)}"
            return request

        return signed

    @contextmanager
    def _mapped(self, host: HostRecord) -> Iterator[None]:
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

    async def ensure(self, host: HostRecord, asked: Ensure) -> Accepted | Rejected:
        """Ask for an instance of a function. Raises AgentUnavailable."""
        with self._mapped(host):
            answer = await self._send(host, "POST", "/functions/ensure", asked)
            return msgspec.json.decode(answer, type=Accepted | Rejected)

    async def plan(self, host: HostRecord, function: Function) -> PlacementPlan | Rejected:
        """Ask what `ensure` would do. Raises AgentAway."""
        with self._mapped(host):
            answer = await self._send(host, "POST", "/functions/plan", PlanRequest(function))
            return msgspec.json.decode(answer, type=PlacementPlan | Rejected)

    async def drain(self, host: HostRecord) -> Sequence[str]:
        """Have a host emptied. Return the instances that are going. Raises AgentUnavailable."""
        with self._mapped(host):
            answer = await self._send(host, "POST", "/drain", None)
            return msgspec.json.decode(answer, type=dict[str, list[str]])["instances"]

    async def cool(self, host: HostRecord, function: str, *, at_once: bool = False) -> Sequence[str]:
        """Let a function's instances go. Raises AgentUnavailable."""
        with self._mapped(host):
            answer = await self._send(host, "POST", "/functions/cool", Cool(function, at_once))
            return msgspec.json.decode(answer, type=dict[str, list[str]])["instances"]

    async def forget(self, host: HostRecord, function: str) -> None:
        """Have what was learned of a function dropped. Raises AgentUnavailable."""
        with self._mapped(host):
            await self._send(host, "POST", f"/functions/forget?function={quote(function, safe='')}", None)

    async def heed(self, host: HostRecord, catalogue: Catalogue, digest: str) -> None:
        """Tell an agent the catalogue. Raises AgentUnavailable."""
        with self._mapped(host):
            await self._send(host, "PUT", "/catalogue", CatalogueUpdate(catalogue, digest))

    async def logs(self, host: HostRecord, path: str, asked: Mapping[str, str | int]) -> httpx.Response | None:
        """Open a worker's log on a host, to be read as it comes and closed by the caller; None when it has none.

        Raises AgentAway.
        """
        with self._mapped(host):
            timeout = httpx.Timeout(TIMEOUT_S, read=None)
            request = self._http.build_request("GET", host.address + path, params=dict(asked), timeout=timeout)
            answer = await self._http.send(request, stream=True, auth=self._auth(host))
            if answer.status_code == httpx.codes.OK:
                return answer
            await answer.aclose()
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            return None

    # Weights.

    async def stored(self, host: HostRecord) -> list[Stored]:
        """Ask what weights a host has. Raises AgentUnavailable."""
        return await self._asked(host, "GET", "/weights", None, list[Stored])

    async def remove_weights(self, host: HostRecord, asked: Remove) -> Removed:
        """Have stored weights removed. Raises AgentUnavailable or AgentRefused."""
        return await self._asked(host, "POST", "/weights/remove", asked, Removed)

    async def prefetch(self, host: HostRecord, function: Function) -> str:
        """Have a function's weights fetched; return the job. Raises AgentAway or AgentRefused."""
        answer = await self._asked(host, "POST", "/weights/fetch", Prefetch(function), dict[str, str])
        return answer["job"]

    async def estimate(self, host: HostRecord, function: Function) -> Estimate:
        """Ask how much memory a function takes. Raises AgentUnavailable or AgentRefused."""
        wanted = Prefetch(function)
        return await self._asked(host, "POST", "/weights/estimate", wanted, Estimate, within_s=HUB_TIMEOUT_S)

    async def jobs(self, host: HostRecord) -> list[dict[str, Any]]:
        """Ask for a host's fetches. Raises AgentUnavailable or AgentRefused."""
        return await self._asked(host, "GET", "/jobs", None, list[dict[str, Any]])

    async def cancel_job(self, host: HostRecord, job: str) -> None:
        """Stop a fetch. Raises AgentUnavailable or AgentRefused."""
        await self._asked(host, "POST", f"/jobs/{quote(job, safe='')}/cancel", None, dict[str, str])

    async def _asked(
        self, host: HostRecord, method: str, path: str, body: Any, kind: type[T], *, within_s: float = TIMEOUT_S
    ) -> T:
        with self._mapped(host):
            content = msgspec.json.encode(body) if body else None
            answer = await self._http.request(
                method, host.address + path, content=content, timeout=within_s, auth=self._auth(host)
            )
            if answer.status_code in (400, 404, 503):
                raise AgentRefused(str(answer.json().get("detail", answer.text)), answer.status_code)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=kind)

    async def _send(self, host: HostRecord, method: str, path: str, body: Any) -> bytes:
        answer = await self._http.request(
            method, host.address + path, content=msgspec.json.encode(body), auth=self._auth(host)
        )
        answer.raise_for_status()
        return answer.content
