"""Translate the tools of an Anthropic request into functions: which ones the model sees, and in which order.

The client's order is preserved, because tools are at the start of the prompt. Deferred tools are appended in the order
of their first reference, so a growing conversation keeps its cached prefix.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import wire
from cortex.router.dialects.core.conversation import Function, FunctionTool, NamedToolChoice, ToolChoice, ToolName
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.traits import Traits

# Claude Code's placeholder for an empty list; not a tool.
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


class ToolSelection(msgspec.Struct, frozen=True):
    """The tools and the tool choice for the worker."""

    tools: list[FunctionTool] | None = None
    choice: ToolChoice | None = None
    parallel: bool | None = None


def select_tools(
    tools: list[dict[str, Any]] | None,
    choice: Choice | None,
    referenced: list[str],
    traits: Traits,
) -> ToolSelection:
    """Return the tools to send and the client's choice. Raises BadRequest."""
    by_name = _tools_by_name(tools or [])
    required_name = _name_of(choice, by_name)
    loaded = [name for name in dict.fromkeys([*referenced, required_name]) if name in by_name]
    visible = [tool for tool in by_name.values() if not tool.defer_loading]
    visible += [by_name[name] for name in loaded if name is not None and by_name[name].defer_loading]
    functions = [_function(tool) for tool in visible]
    if choice is not None and choice.type in ("any", "tool"):
        traits.check_demand(bool(functions), "tool_choice")
    if not functions:
        return ToolSelection()
    parallel = None
    if choice is not None and choice.disable_parallel_tool_use is not None:
        parallel = not choice.disable_parallel_tool_use
    if required_name is None:
        return ToolSelection(functions, _MODES.get(choice.type) if choice else None, parallel)
    if traits.named_tool_choice:
        return ToolSelection(functions, NamedToolChoice(ToolName(required_name)), parallel)
    # llama-server treats a named choice as "auto"; a single tool with "required" is equivalent.
    return ToolSelection([tool for tool in functions if tool.function.name == required_name], "required", parallel)


_MODES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


def _tools_by_name(tools: list[dict[str, Any]]) -> dict[str | None, _Tool]:
    by_name: dict[str | None, _Tool] = {}
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        kind = "custom" if tool.get("type") is None else wire.kind_of(tool, at)
        if kind != "custom" and not isinstance(tool.get("input_schema"), dict):
            raise BadRequest(f"tools of type {kind[:80]!r} are not supported", f"{at}.type", Kind.UNSUPPORTED)
        definition = wire.convert(tool, _Tool, at)
        if not definition.name:
            raise BadRequest("expected a name", f"{at}.name")
        if definition.name != _PLACEHOLDER:
            by_name[definition.name] = definition
    return by_name


def _name_of(choice: Choice | None, by_name: dict[str | None, _Tool]) -> str | None:
    """Return the tool that the client requires, or None. Raises BadRequest."""
    if choice is None or choice.type in _MODES:
        return None
    if choice.type != "tool":
        raise BadRequest("expected auto, any, tool or none", "tool_choice.type")
    if choice.name not in by_name:
        raise BadRequest("expected the name of a tool in tools", "tool_choice.name")
    return choice.name


def _function(tool: _Tool) -> FunctionTool:
    schema = tool.input_schema
    if "type" not in schema:
        schema = {"type": "object", **schema}
    return FunctionTool(Function(tool.name, schema, tool.description or None, tool.strict))
