"""Calls of an engine's paths that only its operator may use, with the worker's control key."""

import aiohttp

from cortex.platform import worker_http
from cortex.platform.record import Instance
from cortex.platform.worker_http import Unreadable
from cortex.platform.workers.control_keys import ControlKeys

ANSWER_BYTES = 64 * 1024


class CallFailed(Exception):
    """A worker did not answer; the message is for operators."""


class ControlCalls:
    """Calls the workers of one host."""

    def __init__(self, control: ControlKeys) -> None:
        self._control = control

    async def call(
        self, instance: Instance, method: str, path: str, within_s: float, body: object = None
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer. Raises CallFailed."""
        name, timeout = path.partition("?")[0], aiohttp.ClientTimeout(total=within_s)
        try:
            headers = worker_http.headers(self._control.key(instance.id))
            async with (
                worker_http.session() as http,
                http.request(
                    method, instance.url + path, json=body, headers=headers, timeout=timeout, allow_redirects=False
                ) as answer,
            ):
                return answer.status, await worker_http.whole(answer, ANSWER_BYTES)
        except TimeoutError:
            raise CallFailed(f"the engine did not answer {name} within {within_s:.0f} s") from None
        except (*worker_http.BREAKS, OSError, Unreadable) as error:
            raise CallFailed(f"{name}: {worker_http.failure(error)}") from None
