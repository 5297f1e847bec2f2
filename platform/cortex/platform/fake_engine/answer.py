"""The answer, token by token, before an engine's wire form. Pure and deterministic: the same request to the same
function has the same answer in every process, streamed or not.

By default the first token is the function's name and the following words depend on the prompt, which reveals an answer
to the wrong request or from the wrong worker.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from cortex.platform.fake_engine.request import ChatRequest, CompletionRequest, Function, inputs
from cortex.platform.fake_engine.script import Script

CREATED = 1_700_000_000  # fixed, so that answers do not depend on the clock
WORDS = [
    "a",
    "an",
    "as",
    "at",
    "be",
    "by",
    "do",
    "go",
    "he",
    "if",
    "in",
    "is",
    "it",
    "me",
    "my",
    "no",
    "of",
    "on",
    "or",
    "so",
    "to",
    "up",
    "us",
    "we",
]
EXAMPLES: dict[object, object] = {
    "string": "fake",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}
ARGUMENT_PIECE = 8


class Think(msgspec.Struct, frozen=True):
    """A token of reasoning."""

    text: str


class Say(msgspec.Struct, frozen=True):
    """A token of the answer."""

    text: str


class Call(msgspec.Struct, frozen=True):
    """The opening of a tool call, the `index`th of its answer."""

    digest: str
    name: str
    index: int = 0


class Arguments(msgspec.Struct, frozen=True):
    """A part of that call's arguments, which are JSON when joined."""

    text: str
    index: int = 0


class ScriptedCall(msgspec.Struct, frozen=True):
    """A tool call from the script."""

    name: str
    arguments: dict[str, object] = {}


Delta = Think | Say | Call | Arguments
Finish = Literal["stop", "length", "tool_calls"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. Each delta is one token."""

    digest: str
    model: str
    prompt_tokens: int
    deltas: tuple[Delta, ...]
    finish: Finish
    ttft_s: float
    tps: float

    @property
    def content(self) -> str:
        """The text of the answer."""
        return "".join(delta.text for delta in self.deltas if isinstance(delta, Say))

    @property
    def reasoning(self) -> str:
        """The reasoning."""
        return "".join(delta.text for delta in self.deltas if isinstance(delta, Think))

    @property
    def calls(self) -> list[Call]:
        """The tool calls."""
        return [delta for delta in self.deltas if isinstance(delta, Call)]

    def arguments(self, call: Call) -> str:
        """Return a call's arguments, up to the token limit."""
        return "".join(d.text for d in self.deltas if isinstance(d, Arguments) and d.index == call.index)

    def within(self, limit: int | None) -> "Answer":
        """Return the answer, truncated after `limit` tokens."""
        if limit is None or len(self.deltas) <= limit:
            return self
        return msgspec.structs.replace(self, deltas=self.deltas[:limit], finish="length")


def chat_answer(request: ChatRequest, script: Script, model: str) -> Answer:
    """Return the answer to a conversation: reasoning first, then tool calls or text."""
    digest = _digest(model, request.prompt)
    deltas: list[Delta] = [Think(word) for word in _words(digest, "hm", script.reasoning_tokens)]
    finish: Finish = "stop"
    calls = _calls(request, script)
    for index, (name, arguments) in enumerate(calls):
        own = f"{index:x}{digest[1:]}" if index else digest
        deltas += [Call(own, name, index), *(Arguments(text, index) for text in _split(arguments, ARGUMENT_PIECE))]
    if calls:
        # vLLM finishes a call that was demanded by name with "stop".
        finish = "stop" if isinstance(request.tool_choice, dict) else "tool_calls"
    elif script.report_results and request.results:
        deltas += [Say(word) for word in _tokens(f"I have {request.results} results and {request.images} images.")]
    else:
        deltas += [Say(word) for word in _text(digest, request.last_user_text, script, model)]
    answer = Answer(
        digest=digest,
        model=model,
        prompt_tokens=request.prompt_tokens,
        deltas=tuple(deltas),
        finish=finish,
        ttft_s=script.ttft_s,
        tps=script.tps,
    )
    return answer.within(request.limit)


def text_answer(request: CompletionRequest, script: Script, model: str) -> Answer:
    """Return the continuation of a prompt."""
    words = [word for group in inputs(request.prompt) for word in group]
    prompt = request.prompt if isinstance(request.prompt, str) else " ".join(words)
    digest = _digest(model, prompt)
    answer = Answer(
        digest=digest,
        model=model,
        prompt_tokens=len(words),
        deltas=tuple(Say(word) for word in _text(digest, prompt, script, model)),
        finish="stop",
        ttft_s=script.ttft_s,
        tps=script.tps,
    )
    return answer.within(request.max_tokens)


def _calls(request: ChatRequest, script: Script) -> list[tuple[str, str]]:
    """Return the tool calls by name and arguments: those of the script for offered tools, or an example call."""
    tools = {tool.function.name for tool in request.tools or ()}
    if script.calls is not None and not request.results:
        calls = msgspec.json.decode(script.calls, type=list[ScriptedCall])
        return [(call.name, msgspec.json.encode(call.arguments).decode()) for call in calls if call.name in tools]
    function = function_to_call(request, script)
    return [] if function is None else [(function.name, msgspec.json.encode(_example(function.parameters)).decode())]


def function_to_call(request: ChatRequest, script: Script) -> Function | None:
    """Return the function that the answer calls, if any.

    (1) The request offers no tools, or its choice is "none".
    (2) It demands one by name, which llama-server treats as "auto".
    (3) It demands any.
    (4) The script calls one, except after a tool's result, so that agents end.
    """
    if not request.tools or request.tool_choice == "none":  # (1)
        return None
    if isinstance(request.tool_choice, dict) and script.shape == "vllm":  # (2)
        choice = request.tool_choice.get("function")
        name = choice.get("name") if isinstance(choice, dict) else None
        return next((tool.function for tool in request.tools if tool.function.name == name), None)
    if request.tool_choice == "required":  # (3)
        return request.tools[0].function
    after_a_result = bool(request.messages) and request.messages[-1].role == "tool"
    return request.tools[0].function if script.call_tool and not after_a_result else None  # (4)


def embedding(words: Iterable[str], model: str, dimensions: int) -> list[float]:
    """Return a vector unique to the words. Its numbers are exact in four bytes, so both encodings are equal."""
    digest = hashlib.shake_256(f"{model}\0{' '.join(words)}".encode()).digest(dimensions)
    return [(byte - 128) / 128 for byte in digest]


def _text(digest: str, prompt: str, script: Script, model: str) -> list[str]:
    if script.answer is not None:
        return _tokens(script.answer)
    if script.echo:
        return _tokens(prompt)
    return _words(digest, model, script.tokens)


def _words(digest: str, first: str, count: int) -> list[str]:
    seed = bytes.fromhex(digest)
    rest = (f" {WORDS[(seed[i % len(seed)] + i) % len(WORDS)]}" for i in range(1, count))
    return [first, *rest] if count else []


def _tokens(text: str) -> list[str]:
    """Split a text into words with the white space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def _split(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _digest(model: str, prompt: str) -> str:
    return hashlib.sha256(f"{model}\0{prompt}".encode()).hexdigest()[:32]


def _example(schema: dict[str, object]) -> object:
    """Return a minimal value for a JSON schema, roughly valid."""
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return EXAMPLES.get(schema.get("type"), {})
    required = schema.get("required")
    names = required if isinstance(required, list) else list(properties)
    return {name: _example(properties[name]) for name in names if isinstance(properties.get(name), dict)}
