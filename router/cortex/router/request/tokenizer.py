"""Count a prompt's tokens with the worker's own tokenizer and template."""

from typing import Any

import msgspec

from cortex.functions.servers import server_of
from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.worker_errors import fault_from_worker
from cortex.router.errors import UpstreamBroke
from cortex.router.request.upstream import Broken, Upstream


class _Refused(Exception):
    """The worker answered with an error. Its text may quote the prompt: only the request's client may see it."""

    def __init__(self, status: int, answer: str) -> None:
        super().__init__(f"it answered {status}")
        self.status, self.answer = status, answer


class _Prompt(msgspec.Struct):
    """The prompt of a completion; a chat has messages."""

    prompt: str | list[int | str] | None = None


def _prompt(body: Body) -> str | list[int | str] | None:
    """Return the prompt of a completion."""
    if isinstance(body, bytes):
        return msgspec.json.decode(body, type=_Prompt).prompt
    return msgspec.json.decode(body.value("prompt"), type=str | list[int | str]) if "prompt" in body else None


class Tokenizer:
    """Counts tokens by calls to workers."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def count(self, function: Function, instance: Instance, body: Body) -> int:
        """Return the number of tokens of a request's prompt. llama-server renders a chat's template first; the prompt
        of a completion is a string, or a list of token ids.

        Raises UpstreamBroke when the worker cannot count.
        """
        counts = server_of(function, instance.server).counts
        if counts == "no":
            raise UpstreamBroke(f"the worker of '{function.id}' cannot count a prompt's tokens")
        prompt = _prompt(body)
        if isinstance(prompt, list):
            if any(isinstance(element, str) for element in prompt):
                raise UpstreamBroke(f"the worker of '{function.id}' cannot count a prompt of token ids and texts")
            return len(prompt)
        try:
            if counts == "tokenize":
                return int((await self._ask(instance, "/tokenize", body))["count"])
            rendered = prompt
            if rendered is None:
                rendered = (await self._ask(instance, "/apply-template", body))["prompt"]
            text = msgspec.json.encode({"content": rendered, "add_special": True, "parse_special": True})
            return len((await self._ask(instance, "/tokenize", text))["tokens"])
        except (Broken, BadAnswer) as error:
            raise UpstreamBroke(f"the worker of '{function.id}' could not count the prompt: {error}") from None
        except _Refused as refused:
            raise UpstreamBroke(
                f"the worker of '{function.id}' could not count the prompt: it answered {refused.status}",
                answer=refused.answer,
            ) from None
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            raise UpstreamBroke(f"the worker of '{function.id}' did not answer with a number of tokens") from None

    async def _ask(self, instance: Instance, path: str, body: Body) -> dict[str, Any]:
        answer = await self._upstream.post(instance, path, body)
        try:
            if answer.status != 200:
                raise _Refused(answer.status, fault_from_worker(answer.status, await answer.error()).message)
            return msgspec.json.decode(await answer.whole(), type=dict[str, Any])
        finally:
            answer.close()
