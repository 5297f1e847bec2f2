"""The tools of an Anthropic request as functions: which ones the model may see, and in which order.

The order is the client's, because tools are the front of the prompt. Tools that load later join at the end, in
the order in which they were referenced, so that a growing conversation only ever appends.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import wire
from cortex.router.dialects.core.conversation import ChosenFunction, ChosenName, Function, FunctionTool, ToolChoice
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.traits import Traits

# Claude Code lists it so that the list is never empty; it is no tool.
_PLACEHOLDER = "DeferredToolPlaceholder"


class Choice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class Chosen(msgspec.Struct, frozen=True):
    """What of the tools goes to the worker."""

    tools: list[FunctionTool] | None = None
    choice: ToolChoice | None = None
    parallel: bool | None = None


def choose(
    tools: list[dict[str, Any]] | None,
    choice: Choice | None,
    referenced: list[str],
    traits: Traits,
    notes: list[str],
) -> Chosen:
    """The tools to send, with the choice that the client made among them."""
    known = _known(tools or [], traits, notes)
    wanted = _name_of(choice, known)
    loaded = [name for name in dict.fromkeys([*referenced, wanted]) if name in known]
    visible = [tool for tool in known.values() if not tool.defer_loading]
    visible += [known[name] for name in loaded if name is not None and known[name].defer_loading]
    functions = [_function(tool) for tool in visible]
    if not functions:
        return Chosen()
    parallel = None
    if choice is not None and choice.disable_parallel_tool_use is not None:
        parallel = not choice.disable_parallel_tool_use
    if wanted is None:
        return Chosen(functions, _MODES.get(choice.type) if choice else None, parallel)
    if traits.named_tool_choice:
        return Chosen(functions, ChosenFunction(ChosenName(wanted)), parallel)
    # llama-server reads a named choice as "auto"; one tool and "required" mean the same.
    return Chosen([tool for tool in functions if tool.function.name == wanted], "required", parallel)


_MODES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


def _known(tools: list[dict[str, Any]], traits: Traits, notes: list[str]) -> dict[str | None, _Tool]:
    known: dict[str | None, _Tool] = {}
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        kind = "custom" if tool.get("type") is None else wire.kind_of(tool, at)
        if kind != "custom" and not isinstance(tool.get("input_schema"), dict):
            if traits.server_tools == "reject":
                raise BadRequest(f"tools of type {kind[:80]!r} are not supported", f"{at}.type", Kind.UNSUPPORTED)
            notes.append(f"{at}: dropped a tool of type {kind[:80]!r}")
            continue
        shaped = wire.shaped(tool, _Tool, at)
        if not shaped.name:
            raise BadRequest("expected a name", f"{at}.name")
        if shaped.name != _PLACEHOLDER:
            known[shaped.name] = shaped
    return known


def _name_of(choice: Choice | None, known: dict[str | None, _Tool]) -> str | None:
    """The one tool that must be called, if the client named one."""
    if choice is None or choice.type in _MODES:
        return None
    if choice.type != "tool":
        raise BadRequest("expected auto, any, tool or none", "tool_choice.type")
    if choice.name not in known:
        raise BadRequest("names a tool that is not in tools", "tool_choice.name")
    return choice.name


def _function(tool: _Tool) -> FunctionTool:
    schema = tool.input_schema
    if "type" not in schema:
        schema = {"type": "object", **schema}
    return FunctionTool(Function(tool.name, schema, tool.description or None, tool.strict))
