"""A function's capabilities, limits and price, as clients see them. Pure.

Sources in order of precedence: the catalogue, the running worker, the weights. Unknown fields are omitted, never
guessed, and a cold function has the same fields as a warm one.
"""

from collections.abc import Sequence
from typing import Any, get_args

from cortex.functions.capabilities import LEVELS, ModelProfile, template_of
from cortex.functions.servers import server_of
from cortex.functions.spec import Endpoint, Function
from cortex.platform.record import Instance
from cortex.router.dialects.models import Card
from cortex.router.model_traits import calls_tools, effort, sees, vision, window_of


def abilities(function: Function, profile: ModelProfile | None, ready: Sequence[Instance]) -> dict[str, Any]:
    """Return the capability fields of an OpenAI model entry that coding agents read."""
    window = context_of(function, profile, ready)
    output = function.max_output_tokens or None
    server = server_of(function, ready[0].server if ready else "")
    calls = calls_tools(function, template_of(profile, function.template), server)
    thinks = reasons(function, profile)
    images = vision(function, profile, sees(ready))
    capabilities = ["text", *["vision"] * bool(images), *["tools"] * bool(calls), *["reasoning"] * bool(thinks)]
    limit = {"context": window, "input": window, "output": output or window}
    prices = {f: v for f in function.cost.__struct_fields__ if (v := getattr(function.cost, f)) is not None}
    fields = {
        "capabilities": capabilities,
        "dialects": dialects(function),
        "limit": limit if window else {"output": output} if output else None,
        "max_model_len": window,
        "max_input_tokens": window,
        "max_output_tokens": output or window,
        "tool_call": calls,
        "reasoning": thinks,
        "cost": prices or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def dialects(function: Function) -> list[str]:
    """Return the dialects that the router accepts for a function, `chat` first. With `task = "auto"`, vLLM decides by
    the model which of them it answers."""
    serves = server_of(function).dialects
    return [endpoint for endpoint in get_args(Endpoint) if endpoint in serves]


def card(id: str, created: int, function: Function, profile: ModelProfile | None, ready: Sequence[Instance]) -> Card:
    """Return the same for Anthropic's model object."""
    window = context_of(function, profile, ready)
    thinks = bool(reasons(function, profile))
    levels = tuple(level for level in LEVELS if effort(function, profile).get(level) == level) if thinks else ()
    return Card(
        id=id,
        created=created,
        max_input_tokens=window,
        max_output_tokens=function.max_output_tokens or window,
        vision=bool(vision(function, profile, sees(ready))),
        thinking=thinks,
        effort=levels,
    )


def context_of(function: Function, profile: ModelProfile | None, ready: Sequence[Instance]) -> int | None:
    """Return the context window in tokens: from the workers, else as declared, else from the model."""
    return window_of(ready) or function.context or (profile.context if profile else 0) or None


def reasons(function: Function, profile: ModelProfile | None) -> bool | None:
    """Whether the model reasons before it answers; None if unknown."""
    template = function.template
    if template.thinking_switch or template.reasoning_field in ("reasoning_content", "reasoning"):
        return True
    return profile.reasoning if profile else None
