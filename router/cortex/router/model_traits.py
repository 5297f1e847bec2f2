"""Derive a function's `Traits` from its engine, its weights, its workers and its settings. Pure.

Requests in the workers' own dialect are forwarded: the worker validates them, and only features without support are
changed. Translated requests use a feature only if the engine supports it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile, Template, template_of
from cortex.functions.passing import Entrance, passing
from cortex.functions.servers import Server, server_of
from cortex.functions.spec import Function
from cortex.platform.record import HostRecord, Instance
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.traits import EFFORT, Traits

PASSED_ON = Traits(inline_system=True, developer_role=True, vision=True)
CAREFUL = Traits()

_SAME_DIALECT = ("chat", "completions", "tokenize", "detokenize", "apply_template", "infill", "score", "pooling")


class Running(Struct, frozen=True):
    """The ready workers' properties combined: the smallest context, and vision if all have it."""

    window: int = 0
    eyes: bool | None = None
    server: str = ""


class TraitsCache:
    """Caches the traits of each function."""

    def __init__(self) -> None:
        self._cache: dict[tuple[str, Dialect], tuple[Function, ModelProfile | None, Sequence[Instance], Traits]] = {}

    def of(self, function: Function, dialect: Dialect, known: ModelProfile | None, ready: Sequence[Instance]) -> Traits:
        """Return the traits of a function for a dialect, given its ready instances."""
        cached = self._cache.get((function.id, dialect))
        if cached is not None and cached[0] is function and cached[1] is known and cached[2] is ready:
            return cached[3]
        if len(self._cache) > 4096:
            self._cache.clear()
        running = Running(window_of(ready), sees(ready), ready[0].server if ready else "")
        base = PASSED_ON if dialect in _SAME_DIALECT else CAREFUL
        result = traits(function, known, running, base, _entrance(function, dialect))
        self._cache[function.id, dialect] = (function, known, ready, result)
        return result


def _entrance(function: Function, dialect: Dialect) -> Entrance:
    """Return the entry of `passing.py` for a dialect; translated requests use that of chat."""
    match dialect:
        case "ollama_embed" | "ollama_embeddings":
            return "embeddings"
        case "ollama_chat" | "ollama_generate" | "ollama" | "apply_template":
            return "chat"
        case "messages" | "responses" if dialect not in function.native:
            return "chat"
    return dialect


def traits(
    function: Function, known: ModelProfile | None, running: Running, base: Traits, entrance: Entrance = "chat"
) -> Traits:
    """Return a function's traits; `base` has the values for unknown properties."""
    server = server_of(function, running.server)
    template = template_of(known, function.template)
    seeing = vision(function, known, running.eyes)
    passes = passing(server.family, entrance, function.allow)
    if template.thinking_switch:
        passes = replace(passes, template_names=passes.template_names | {template.thinking_switch})
    return Traits(
        inline_system=base.inline_system if template.inline_system is None else template.inline_system,
        developer_role=base.developer_role if template.developer_role is None else template.developer_role,
        content_parts=True if template.content_parts is None else template.content_parts,
        tool_ids=template.tool_ids or "any",
        reasoning_field=_reasoning_field(function, template, server),
        thinking_switch=base.thinking_switch if template.thinking_switch is None else template.thinking_switch or None,
        effort=effort(function, known),
        vision=base.vision if seeing is None else seeing,
        context_window=running.window or function.context or None,
        thinking_budget=server.thinking_budget,
        named_tool_choice=server.named_tool_choice,
        prefill=server.prefill,
        json_schema=server.json_schema,
        names_stop=server.names_stop,
        audio=server.takes_audio or seeing is not False,
        tools=calls_tools(function, template, server) is not False,
        passing=passes,
        completion_tokens=server.completion_tokens,
        default_output_tokens=function.default_output_tokens or None,
        max_output_tokens=function.max_output_tokens or None,
        sampling=function.sampling,
        template_kwargs=function.chat_template_kwargs,
        on_long_prompt=function.on_long_prompt,
    )


def calls_tools(function: Function, template: Template, server: Server) -> bool | None:
    """Whether a function can call tools: its server must parse the format that its template uses."""
    if function.tool_parser == "none" or not server.tools:
        return False
    return template.tools


def vision(function: Function, known: ModelProfile | None, eyes: bool | None) -> bool | None:
    """Whether a function takes images: the operator's setting, else its workers, else its weights."""
    if not isinstance(function.vision, str):
        return function.vision
    return eyes if eyes is not None else known.vision if known else None


def effort(function: Function, known: ModelProfile | None) -> dict[str, str]:
    """Map each effort of clients to the template's value: from the weights, overridden by the operator."""
    levels = (known.effort if known else None) or EFFORT
    return levels | {str(level): value for level, value in function.effort.items()}


def window_of(ready: Sequence[Instance]) -> int:
    """Return the smallest context that the instances report; 0 if none does."""
    return min((i.context for i in ready if i.context), default=0)


def known_models(hosts: Mapping[str, HostRecord]) -> dict[str, ModelProfile]:
    """Return each function's model profile, from the first host (by name) that has one."""
    profiles: dict[str, ModelProfile] = {}
    for name in sorted(hosts):
        for function, known in hosts[name].models.items():
            profiles.setdefault(function, known)
    return profiles


def sees(ready: Sequence[Instance]) -> bool | None:
    """Whether all running workers report vision; None if none reports."""
    reports = [i.vision for i in ready if i.vision is not None]
    return all(reports) if reports else None


def _reasoning_field(
    function: Function, template: Template, server: Server
) -> Literal["reasoning_content", "reasoning"] | None:
    """Return the worker's field for the thinking of earlier turns; None if the template takes none."""
    if template.reasoning_field == "none":
        return None
    if function.template.reasoning_field is not None and template.reasoning_field is not None:
        return template.reasoning_field
    return server.reasoning_field
