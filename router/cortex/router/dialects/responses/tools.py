"""Translate the tools of a Responses request into functions, and function names back into tools.

Workers support functions with flat names. A client's tool may be in a namespace or take free text; its calls must match
that declaration, so a request has a table of names for its answer.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import wire
from cortex.router.dialects.core.conversation import Function, FunctionTool, NamedToolChoice, ToolChoice, ToolName
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits

_FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


class ToolDeclaration(msgspec.Struct, frozen=True):
    """A tool as the client declared it."""

    name: str
    namespace: str | None = None
    custom: bool = False


class _Tool(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None


class _Namespace(msgspec.Struct):
    name: str
    tools: list[dict[str, Any]]


class _Choice(msgspec.Struct):
    type: str
    name: str | None = None
    namespace: str | None = None
    mode: str | None = None
    tools: list[dict[str, Any]] | None = None


class Tools:
    """The functions to send, in the client's order, and the tool of each."""

    def __init__(self, traits: Traits) -> None:
        self.functions: list[FunctionTool] = []
        self.names: dict[str, ToolDeclaration] = {}
        self.choice: ToolChoice | None = None
        self.dropped: list[str] = []
        """Paths of what is not forwarded."""
        self._flat: dict[tuple[str | None, str], str] = {}
        self._traits = traits

    def declare(self, tools: list[dict[str, Any]]) -> None:
        for index, tool in enumerate(tools):
            self._declare(tool, f"tools[{index}]", None)

    def flat(self, name: str, namespace: str | None) -> str:
        """Return the function name of a client's tool, which an old call may name without declaring it."""
        return self._flat.get((namespace, name)) or (f"{namespace}__{name}" if namespace else name)

    def choose(self, tool_choice: str | dict[str, Any] | None) -> None:
        """Apply the client's tool choice; without tools all but a demand is ignored. Raises BadRequest."""
        if _demands_call(tool_choice):
            self._traits.check_demand(bool(self.functions), "tool_choice")
        if tool_choice is None or not self.functions:
            return
        if isinstance(tool_choice, str):
            if tool_choice not in ("auto", "none", "required"):
                raise BadRequest("expected auto, none, required or an object", "tool_choice")
            self.choice = _MODES[tool_choice]
            return
        choice = wire.convert(tool_choice, _Choice, "tool_choice")
        match choice.type:
            case "function" | "custom":
                self._name(choice)
            case "allowed_tools":
                self._allow(choice)
            case _:
                self.dropped.append("tool_choice")

    def _declare(self, tool: dict[str, Any], at: str, namespace: str | None) -> None:
        match wire.kind_of(tool, at, "function"):
            case "function":
                function = wire.convert(tool, _Tool, at)
                parameters = function.parameters or {"type": "object", "properties": {}}
                self._add(function, ToolDeclaration(function.name, namespace), parameters, function.description, at)
            case "custom":
                custom = wire.convert(tool, _Tool, at)
                declaration = ToolDeclaration(custom.name, namespace, custom=True)
                self._add(custom, declaration, _FREE_TEXT, _description(custom), at)
            case "namespace" if namespace is None:
                group = wire.convert(tool, _Namespace, at)
                for index, member in enumerate(group.tools):
                    self._declare(member, f"{at}.tools[{index}]", group.name)
            case _:
                self.dropped.append(at)

    def _add(
        self, tool: _Tool, declaration: ToolDeclaration, parameters: dict[str, Any], description: str | None, at: str
    ) -> None:
        if not tool.name:
            raise BadRequest("expected a name", f"{at}.name")
        flat = self.flat(declaration.name, declaration.namespace)
        while flat in self.names:
            flat += "_"
        self._flat[declaration.namespace, declaration.name] = flat
        self.names[flat] = declaration
        self.functions.append(FunctionTool(Function(flat, parameters, description or None, tool.strict)))

    def _name(self, choice: _Choice) -> None:
        flat = self.flat(choice.name or "", choice.namespace)
        if flat not in self.names:
            raise BadRequest("expected the name of a tool in tools", "tool_choice.name")
        if self._traits.named_tool_choice:
            self.choice = NamedToolChoice(ToolName(flat))
            return
        self.functions = [tool for tool in self.functions if tool.function.name == flat]
        self.choice = "required"

    def _allow(self, choice: _Choice) -> None:
        at = "tool_choice.tools"
        members = [wire.convert(member, _Choice, f"{at}[{n}]") for n, member in enumerate(choice.tools or ())]
        allowed = {self.flat(member.name or "", member.namespace) for member in members}
        # A choice may allow a whole namespace.
        namespaces = {member.name for member in members if member.type == "namespace"}
        self.functions = [
            tool
            for tool in self.functions
            if tool.function.name in allowed or self.names[tool.function.name].namespace in namespaces - {None}
        ]
        if not self.functions and choice.mode == "required":
            raise BadRequest("expected the names of tools in tools", at)
        self.choice = "required" if choice.mode == "required" else None


_MODES: dict[str, ToolChoice] = {"auto": "auto", "none": "none", "required": "required"}


def _demands_call(choice: str | dict[str, Any] | None) -> bool:
    if not isinstance(choice, dict):
        return choice == "required"
    return choice.get("type") in ("function", "custom") or choice.get("mode") == "required"


def _description(tool: _Tool) -> str:
    """Return a custom tool's description with its grammar, which engines cannot enforce inside a JSON string."""
    lines = [tool.description or "", "Put the whole input of this tool, as it is, into `input`."]
    form = tool.format or {}
    if isinstance(form.get("definition"), str):
        lines.append(f"It must follow this grammar ({form.get('syntax', 'unknown')}):\n{form['definition']}")
    return "\n\n".join(line for line in lines if line)
