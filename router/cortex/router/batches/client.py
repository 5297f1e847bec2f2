"""The HTTP client that sends lines to the router of this machine, with a pass for the batch's key."""

import ssl
import time
from pathlib import Path

import httpx

from cortex.platform.keys import FleetToken
from cortex.platform.serving import address
from cortex.platform.settings import Gateway
from cortex.router.access import batch_pass
from cortex.router.batches.batch import WINDOW_S, Batch
from cortex.router.batches.engine import NoAnswer
from cortex.router.batches.lines import Answer, Line


class RouterClient:
    """Sends lines to the router's listener on this machine."""

    def __init__(self, gateway: Gateway, token: FleetToken) -> None:
        host, port = address.split(gateway.listen)
        reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        scheme = "https" if gateway.tls_cert else "http"
        self._token = token
        self._http = httpx.AsyncClient(
            base_url=f"{scheme}://{address.join(reachable, port)}",
            timeout=httpx.Timeout(10.0, read=WINDOW_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
            verify=_own_certificate(gateway.tls_cert) if gateway.tls_cert else False,
        )

    async def __aenter__(self) -> "RouterClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, batch: Batch, line: Line, body: bytes) -> Answer:
        """Send a line for the key of its batch. Raises NoAnswer."""
        headers = {
            "authorization": f"Bearer {batch_pass.make(self._token.current, batch.key, time.time())}",
            "content-type": "application/json",
            "x-request-id": f"{batch.id}.{line.number}",
        }
        try:
            answer = await self._http.post(line.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise NoAnswer(f"the router does not answer: {type(error).__name__}") from None
        retry_after = answer.headers.get("retry-after", "")
        return Answer(
            status=answer.status_code,
            body=answer.content,
            request_id=answer.headers.get("x-request-id", ""),
            retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
            may_retry=answer.headers.get("x-should-retry") != "false",
            from_worker="x-cortex-instance" in answer.headers,
        )


def _own_certificate(cert: str) -> ssl.SSLContext:
    """Return a context that trusts the router's own certificate and nothing else, by whatever name it is reached."""
    context = ssl.create_default_context(cafile=str(Path(cert).expanduser()))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
