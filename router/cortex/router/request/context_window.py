"""Making a request fit the worker that was chosen for it, before the worker has to find out that it does not.

Only when the request might not fit is the worker's tokenizer asked: a token takes a byte of the body at least, so
most requests obviously do, and cost nothing here. A worker that cannot count decides for itself.

Clients of the workers' own dialect get the worker's own verdict (said in the same words, see `worker_errors`),
unless the function would rather answer shortly: engines that cut an answer off at the end of the context are what
those clients expect.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from msgspec.structs import replace

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.core import limits
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import ParsedRequest
from cortex.router.errors import UpstreamBroke

log = structlog.get_logger()

Settle = Callable[[Instance, bool], Awaitable[bytes]]
"""Makes the body to send to an instance, given whether its client's stream has begun already. Raises DialectError
when there is no way."""


class Counter(Protocol):
    """Counts the tokens of a request's prompt. Raises UpstreamBroke."""

    async def count(self, function: Function, instance: Instance, body: bytes) -> int: ...


def fitting(
    tokenizer: Counter, function: Function, dialect: Dialect, asked: ParsedRequest, body: bytes, traits: Traits
) -> Settle | None:
    """Return how to make a request fit, or None when it need not be looked at."""
    ours = asked.limit_is_ours and asked.max_tokens is not None
    judged = dialect in ("messages", "responses") or traits.on_long_prompt == "clamp" or ours
    if not judged or dialect == "completions":  # a text's tokens cannot be asked for in the same way
        return None
    if limits.fits_without_counting(len(body), asked.max_tokens, traits.context_window):
        return None

    async def fitted(instance: Instance, begun: bool) -> bytes:
        window = instance.context or function.context
        if not window or limits.fits_without_counting(len(body), asked.max_tokens, window):
            return body
        try:
            tokens = await tokenizer.count(function, instance, asked.count(function.id))
        except UpstreamBroke as broke:
            log.info("prompt_not_counted", function=function.id, why=broke.message)
            return body
        # Once a stream has begun nobody asks again for less (Claude Code gives up): it gets the room there is.
        # A limit that the client did not name is no reason to refuse its prompt.
        rule = "clamp" if begun or asked.limit_is_ours else traits.on_long_prompt
        allowed = limits.fit(tokens, asked.max_tokens, replace(traits, context_window=window, on_long_prompt=rule))
        return body if allowed == asked.max_tokens else asked.body(function.id, allowed)

    return fitted
