"""What clients are told a function can do and takes: abilities, limits, price. Pure.

Put together, best source first, from what its operator says, what its running worker says and what its weights
say. What nobody says is left out, never guessed; a cold function is described like a warm one.
"""

from collections.abc import Sequence
from typing import Any

from cortex.functions.capabilities import LEVELS, ModelProfile, template_of
from cortex.functions.servers import server_of
from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.models import Card
from cortex.router.request.model_traits import effort, sees, vision, window_of


def abilities(function: Function, known: ModelProfile | None, ready: Sequence[Instance]) -> dict[str, Any]:
    """Return the fields of an OpenAI-shaped model entry that agents look for."""
    window = context_of(function, known, ready)
    output = function.max_output_tokens or None
    calls = calls_tools(function, known, ready)
    thinks = reasons(function, known)
    seen = vision(function, known, sees(ready))
    words = ["text", *["vision"] * bool(seen), *["tools"] * bool(calls), *["reasoning"] * bool(thinks)]
    limit = {"context": window, "input": window, "output": output or window}
    prices = {f: v for f in function.cost.__struct_fields__ if (v := getattr(function.cost, f)) is not None}
    told = {
        "capabilities": words,
        "limit": limit if window else {"output": output} if output else None,
        "max_model_len": window,
        "max_input_tokens": window,
        "max_output_tokens": output or window,
        "tool_call": calls,
        "reasoning": thinks,
        "cost": prices or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def card(entry: dict[str, Any], function: Function, known: ModelProfile | None, ready: Sequence[Instance]) -> Card:
    """Return the same for Anthropic's shape."""
    window = context_of(function, known, ready)
    thinks = bool(reasons(function, known))
    levels = tuple(level for level in LEVELS if effort(function, known).get(level) == level) if thinks else ()
    return Card(
        id=entry["id"],
        created=entry["created"],
        max_input_tokens=window,
        max_output_tokens=function.max_output_tokens or window,
        vision=bool(vision(function, known, sees(ready))),
        thinking=thinks,
        effort=levels,
    )


def context_of(function: Function, known: ModelProfile | None, ready: Sequence[Instance]) -> int | None:
    """Tokens one request may use: as the workers say, else as declared, else as the model was trained."""
    return window_of(ready) or function.context or (known.context if known else 0) or None


def calls_tools(function: Function, known: ModelProfile | None, ready: Sequence[Instance]) -> bool | None:
    """Whether it can call tools: its server must find the calls in what its template makes the model write."""
    if function.tool_parser == "none" or not server_of(function, ready[0].server if ready else "").tools:
        return False
    return template_of(known, function.template).tools


def reasons(function: Function, known: ModelProfile | None) -> bool | None:
    """Whether it thinks before it answers, as far as its template tells."""
    said = function.template
    if said.thinking_switch or said.reasoning_field in ("reasoning_content", "reasoning"):
        return True
    return known.reasoning if known else None
