"""The tools of a Responses request as plain functions, and the way back from a function's name.

Workers know functions with flat names. A client may have put a tool into a namespace or made it take free text;
it must get the call back the way it declared the tool, so a request keeps a table of names for its answer.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import wire
from cortex.router.dialects.core.conversation import ChosenFunction, ChosenName, Function, FunctionTool, ToolChoice
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits

_FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


class Declared(msgspec.Struct, frozen=True):
    """A tool as the client knows it."""

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
    """The functions to send, in the client's order, and what each is to the client."""

    def __init__(self, traits: Traits) -> None:
        self.functions: list[FunctionTool] = []
        self.names: dict[str, Declared] = {}
        self.choice: ToolChoice | None = None
        self.notes: list[str] = []
        self._flat: dict[tuple[str | None, str], str] = {}
        self._traits = traits

    def declare(self, tools: list[dict[str, Any]]) -> None:
        for index, tool in enumerate(tools):
            self._declare(tool, f"tools[{index}]", None)

    def flat(self, name: str, namespace: str | None) -> str:
        """The function's name for a tool that the client names, perhaps in an old call."""
        return self._flat.get((namespace, name)) or (f"{namespace}__{name}" if namespace else name)

    def choose(self, given: str | dict[str, Any] | None) -> None:
        """What the client wants called; without tools there is nothing to choose."""
        if given is None or not self.functions:
            return
        if isinstance(given, str):
            if given not in ("auto", "none", "required"):
                raise BadRequest("expected auto, none, required or an object", "tool_choice")
            self.choice = _MODES[given]
            return
        choice = wire.shaped(given, _Choice, "tool_choice")
        match choice.type:
            case "function" | "custom":
                self._name(choice)
            case "allowed_tools":
                self._allow(choice)
            case kind:
                self.notes.append(f"tool_choice: {kind[:80]!r} is not a tool here; left to the model")

    def _declare(self, tool: dict[str, Any], at: str, namespace: str | None) -> None:
        match wire.kind_of(tool, at, "function"):
            case "function":
                shaped = wire.shaped(tool, _Tool, at)
                parameters = shaped.parameters or {"type": "object", "properties": {}}
                self._add(shaped, Declared(shaped.name, namespace), parameters, shaped.description, at)
            case "custom":
                shaped = wire.shaped(tool, _Tool, at)
                declared = Declared(shaped.name, namespace, custom=True)
                self._add(shaped, declared, _FREE_TEXT, _described(shaped), at)
            case "namespace" if namespace is None:
                group = wire.shaped(tool, _Namespace, at)
                for index, member in enumerate(group.tools):
                    self._declare(member, f"{at}.tools[{index}]", group.name)
            case kind:
                self.notes.append(f"{at}: dropped a tool of type {kind[:80]!r}")

    def _add(
        self, tool: _Tool, declared: Declared, parameters: dict[str, Any], description: str | None, at: str
    ) -> None:
        if not tool.name:
            raise BadRequest("expected a name", f"{at}.name")
        flat = self.flat(declared.name, declared.namespace)
        while flat in self.names:
            flat += "_"
        self._flat[declared.namespace, declared.name] = flat
        self.names[flat] = declared
        self.functions.append(FunctionTool(Function(flat, parameters, description or None, tool.strict)))

    def _name(self, choice: _Choice) -> None:
        flat = self.flat(choice.name or "", choice.namespace)
        if flat not in self.names:
            raise BadRequest("names a tool that is not in tools", "tool_choice.name")
        if self._traits.named_tool_choice:
            self.choice = ChosenFunction(ChosenName(flat))
            return
        self.functions = [tool for tool in self.functions if tool.function.name == flat]
        self.choice = "required"

    def _allow(self, choice: _Choice) -> None:
        at = "tool_choice.tools"
        chosen = [wire.shaped(one, _Choice, f"{at}[{n}]") for n, one in enumerate(choice.tools or ())]
        allowed = {self.flat(one.name or "", one.namespace) for one in chosen}
        # A namespace may be allowed as a whole.
        whole = {one.name for one in chosen if one.type == "namespace"}
        self.functions = [
            tool
            for tool in self.functions
            if tool.function.name in allowed or self.names[tool.function.name].namespace in whole - {None}
        ]
        self.choice = "required" if choice.mode == "required" and self.functions else None


_MODES: dict[str, ToolChoice] = {"auto": "auto", "none": "none", "required": "required"}


def _described(tool: _Tool) -> str:
    """A grammar cannot be enforced on one string inside JSON, so the model is told of it."""
    lines = [tool.description or "", "Put the whole input of this tool, as it is, into `input`."]
    form = tool.format or {}
    if isinstance(form.get("definition"), str):
        lines.append(f"It must follow this grammar ({form.get('syntax', 'unknown')}):\n{form['definition']}")
    return "\n\n".join(line for line in lines if line)
