"""What translation may rely on for a function: its engine's ways, its own settings. Pure.

Clients that speak the workers' own dialect are passed through as they are: their requests are the worker's to
judge. Translated requests are written carefully, for the engine at hand.
"""

from functools import lru_cache
from typing import Literal

from cortex.functions.spec import Engine, Function
from cortex.router.dialects.errors import Dialect
from cortex.router.dialects.traits import Traits

PASSED_ON = Traits(
    inline_system=True,
    developer_role=True,
    vision=True,
    remote_images=True,
    reasoning_field="reasoning_content",
)


def traits(function: Function, dialect: Dialect) -> Traits:
    """Return what a request of this dialect may ask of this function."""
    if dialect in ("chat", "completions"):
        return PASSED_ON
    return _translated(function.engine, function.context)


@lru_cache(maxsize=256)
def _translated(engine: Engine, context: int) -> Traits:
    llama = engine is Engine.LLAMACPP
    budget: Literal["thinking_token_budget", "thinking_budget_tokens"]
    budget = "thinking_budget_tokens" if llama else "thinking_token_budget"
    return Traits(
        context_window=context or None,
        reasoning_field="reasoning_content" if llama else "reasoning",
        thinking_budget=budget,
        # llama-server turns a choice that names a tool into "auto" without a word.
        named_tool_choice=not llama,
    )
