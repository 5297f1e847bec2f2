"""The router's client to agents: say `ensure`, never "if not running then start"."""

from collections.abc import Iterator, Mapping, Sequence
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
    Cool,
    Ensure,
    Going,
    Heed,
    Plan,
    Planned,
    Prefetch,
    Refused,
    Remove,
    Removed,
    Stored,
)
from cortex.platform.keys import FleetToken
from cortex.platform.serving.trust import trust

T = TypeVar("T")
TIMEOUT_S = ANSWER_S
CONNECT_S = 5.0
HUB_TIMEOUT_S = 60.0
"""For what an agent asks its hub about."""


class AgentAway(Exception):
    """The agent did not answer, or not as an agent does. It may have done what it was told all the same."""


class AgentUnreachable(AgentAway):
    """No connection to the agent came about, so it knows nothing of what it was to do."""


class AgentRefused(Exception):
    """The agent answered that it will not, or cannot; the text says why."""

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


@contextmanager
def _mapped(address: str) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL) as error:
        raise AgentUnreachable(
            f"the agent at {address} cannot be reached: {str(error) or type(error).__name__}"
        ) from error
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        raise AgentAway(f"the agent at {address} did not answer: {str(error) or type(error).__name__}") from error


class Agents:
    """All agents, by the address in their host's record."""

    def __init__(self, token: FleetToken, ca_file: str = "") -> None:
        self._token = token
        self._http = httpx.AsyncClient(
            verify=trust(ca_file),
            headers={"Content-Type": "application/json"},
            auth=self._as_ours,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            trust_env=False,
        )

    def _as_ours(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self._token.current}"
        return request

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ensure(self, address: str, asked: Ensure) -> Going | Refused:
        """Ask for an instance of a function. Raises AgentAway."""
        with _mapped(address):
            answer = await self._send("POST", f"{address}/functions/ensure", asked)
            return msgspec.json.decode(answer, type=Going | Refused)

    async def plan(self, address: str, function: Function) -> Planned | Refused:
        """Ask what `ensure` would do. Raises AgentAway."""
        with _mapped(address):
            answer = await self._send("POST", f"{address}/functions/plan", Plan(function))
            return msgspec.json.decode(answer, type=Planned | Refused)

    async def drain(self, address: str) -> Sequence[str]:
        """Have a host emptied. Return the instances that are going. Raises AgentAway."""
        with _mapped(address):
            answer = await self._send("POST", f"{address}/drain", None)
            return msgspec.json.decode(answer, type=dict[str, list[str]])["instances"]

    async def cool(self, address: str, function: str, *, at_once: bool = False) -> Sequence[str]:
        """Let a function's instances go. Raises AgentAway."""
        with _mapped(address):
            answer = await self._send("POST", f"{address}/functions/cool", Cool(function, at_once))
            return msgspec.json.decode(answer, type=dict[str, list[str]])["instances"]

    async def forget(self, address: str, function: str) -> None:
        """Have what was learned of a function dropped. Raises AgentAway."""
        with _mapped(address):
            await self._send("POST", f"{address}/functions/forget?function={quote(function, safe='')}", None)

    async def heed(self, address: str, catalogue: Catalogue, digest: str) -> None:
        """Tell an agent the catalogue. Raises AgentAway."""
        with _mapped(address):
            await self._send("PUT", f"{address}/catalogue", Heed(catalogue, digest))

    async def logs(self, address: str, path: str, asked: Mapping[str, str | int]) -> httpx.Response | None:
        """Open a worker's log on a host, to be read as it comes and closed by the caller; None when it has none.

        Raises AgentAway.
        """
        with _mapped(address):
            timeout = httpx.Timeout(TIMEOUT_S, read=None)
            request = self._http.build_request("GET", address + path, params=dict(asked), timeout=timeout)
            answer = await self._http.send(request, stream=True)
            if answer.status_code == httpx.codes.OK:
                return answer
            await answer.aclose()
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            return None

    # Weights.

    async def stored(self, address: str) -> list[Stored]:
        """Ask what weights a host has. Raises AgentAway."""
        return await self._asked("GET", f"{address}/weights", None, list[Stored])

    async def remove_weights(self, address: str, asked: Remove) -> Removed:
        """Have stored weights removed. Raises AgentAway or AgentRefused."""
        return await self._asked("POST", f"{address}/weights/remove", asked, Removed)

    async def prefetch(self, address: str, function: Function) -> str:
        """Have a function's weights fetched; return the job. Raises AgentAway or AgentRefused."""
        answer = await self._asked("POST", f"{address}/weights/fetch", Prefetch(function), dict[str, str])
        return answer["job"]

    async def estimate(self, address: str, function: Function) -> Estimate:
        """Ask how much memory a function takes. Raises AgentAway or AgentRefused."""
        url = f"{address}/weights/estimate"
        return await self._asked("POST", url, Prefetch(function), Estimate, within_s=HUB_TIMEOUT_S)

    async def jobs(self, address: str) -> list[dict[str, Any]]:
        """Ask for a host's fetches. Raises AgentAway or AgentRefused."""
        return await self._asked("GET", f"{address}/jobs", None, list[dict[str, Any]])

    async def cancel_job(self, address: str, job: str) -> None:
        """Stop a fetch. Raises AgentAway or AgentRefused."""
        await self._asked("POST", f"{address}/jobs/{quote(job, safe='')}/cancel", None, dict[str, str])

    async def _asked(self, method: str, url: str, body: Any, kind: type[T], *, within_s: float = TIMEOUT_S) -> T:
        with _mapped(url):
            content = msgspec.json.encode(body) if body else None
            answer = await self._http.request(method, url, content=content, timeout=within_s)
            if answer.status_code in (400, 404, 503):
                raise AgentRefused(str(answer.json().get("detail", answer.text)), answer.status_code)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=kind)

    async def _send(self, method: str, url: str, body: Any) -> bytes:
        answer = await self._http.request(method, url, content=msgspec.json.encode(body))
        answer.raise_for_status()
        return answer.content
