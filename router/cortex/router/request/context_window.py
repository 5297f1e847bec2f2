"""Fit a request into the context window of the chosen instance.

The worker's tokenizer is called only if the request might not fit: a token takes at least one byte of the body, so most
requests pass without counting. If a worker cannot count, it decides itself.

Chat clients get the worker's own error (mapped to the same text, see `worker_errors`), unless the function clamps:
those clients expect engines that truncate an answer at the end of the context.
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
"""Returns the body to send to an instance, given whether the client's stream has started. Raises ContextExceeded if
the request does not fit."""


class Counter(Protocol):
    """Counts the tokens of a request's prompt. Raises UpstreamBroke."""

    async def count(self, function: Function, instance: Instance, body: bytes) -> int: ...


def fitting(
    tokenizer: Counter, function: Function, dialect: Dialect, request: ParsedRequest, body: bytes, traits: Traits
) -> Settle | None:
    """Return the function that fits a request, or None when it needs no check."""
    limit_is_ours = request.limit_is_ours and request.max_tokens is not None
    needs_check = dialect in ("messages", "responses") or traits.on_long_prompt == "clamp" or limit_is_ours
    if not needs_check or dialect == "completions":  # the tokenizer endpoints take no completions prompt
        return None
    if limits.fits_without_counting(len(body), request.max_tokens, traits.context_window):
        return None

    async def fitted(instance: Instance, has_started: bool) -> bytes:
        window = instance.context or function.context
        if not window or limits.fits_without_counting(len(body), request.max_tokens, window):
            return body
        try:
            tokens = await tokenizer.count(function, instance, request.count(function.id))
        except UpstreamBroke as error:
            log.info("prompt_not_counted", function=function.id, why=error.message)
            return body
        # Once a stream has started, clients do not retry with less (Claude Code gives up), so the limit is clamped.
        # A limit that the client did not set does not refuse its prompt.
        rule = "clamp" if has_started or request.limit_is_ours else traits.on_long_prompt
        limit = limits.fit(tokens, request.max_tokens, replace(traits, context_window=window, on_long_prompt=rule))
        return body if limit == request.max_tokens else request.body(function.id, limit)

    return fitted
