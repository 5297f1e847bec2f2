"""Fit a request into the context window of the chosen instance.

One rule for every dialect, cold and hot (`limits.fit`). The worker's tokenizer is called only if the request might not
fit: a token takes at least one byte of the body, so most requests pass without counting. If a worker cannot count, it
decides itself.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.core import limits
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import ParsedRequest
from cortex.router.errors import UpstreamBroke

log = structlog.get_logger()


class Fitted(Struct, frozen=True):
    """The body for an instance, the output limit in it, and the tokens of its prompt if they were counted."""

    body: Body
    max_tokens: int | None
    input_tokens: int | None = None


Settle = Callable[[Instance], Awaitable[Fitted]]
"""Fits the request to an instance. Raises ContextExceeded if it does not fit."""


class Counter(Protocol):
    """Counts the tokens of a request's prompt. Raises UpstreamBroke."""

    async def count(self, function: Function, instance: Instance, body: Body) -> int: ...


def fitting(
    tokenizer: Counter,
    function: Function,
    dialect: Dialect,
    request: ParsedRequest,
    body: Body,
    traits: Traits,
    model: str = "",
) -> Settle | None:
    """Return the function that fits a request, or None when it needs no check. `model` is the function's name at its
    workers, by default its id."""
    if request.max_tokens is None and dialect in ("chat", "completions") and traits.on_long_prompt != "clamp":
        return None  # the worker's own error has the numbers
    if limits.fits_without_counting(len(body), request.max_tokens, traits.context_window):
        return None

    async def fitted(instance: Instance) -> Fitted:
        window = instance.context or function.context
        if not window or limits.fits_without_counting(len(body), request.max_tokens, window):
            return Fitted(body, request.max_tokens)
        try:
            tokens = await tokenizer.count(function, instance, request.count(model or function.id))
        except UpstreamBroke as error:
            log.info("prompt_not_counted", function=function.id, why=error.message)
            return Fitted(body, request.max_tokens)
        # A limit that the client did not set does not refuse its prompt.
        rule = "clamp" if request.limit_is_ours else traits.on_long_prompt
        limit = limits.fit(tokens, request.max_tokens, replace(traits, context_window=window, on_long_prompt=rule))
        fits = limit == request.max_tokens
        return Fitted(body if fits else request.body(model or function.id, limit), limit, tokens)

    return fitted
