"""What is said, token by token, before any engine's wording of it. Pure and seedless: the same request to the
same function has the same answer, in the stream and out of it, in every process and on every day.

Unless told otherwise the first token is the function's own name, and the words after it depend on the prompt,
so an answer that went to the wrong request, or came from the wrong worker, is seen at once.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from cortex.platform.fake_engine.request import ChatRequest, CompletionRequest, Function, inputs
from cortex.platform.fake_engine.script import Script

CREATED = 1_700_000_000  # answers carry no clock
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
    """A piece of that call's arguments, which are JSON only once joined."""

    text: str
    index: int = 0


class ScriptedCall(msgspec.Struct, frozen=True):
    """A call that the script has ready."""

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
        """What is said aloud."""
        return "".join(delta.text for delta in self.deltas if isinstance(delta, Say))

    @property
    def reasoning(self) -> str:
        """What is only thought."""
        return "".join(delta.text for delta in self.deltas if isinstance(delta, Think))

    @property
    def calls(self) -> list[Call]:
        """The tool calls."""
        return [delta for delta in self.deltas if isinstance(delta, Call)]

    def arguments(self, call: Call) -> str:
        """A call's arguments, as far as the token limit let them come."""
        return "".join(d.text for d in self.deltas if isinstance(d, Arguments) and d.index == call.index)

    def within(self, limit: int | None) -> "Answer":
        """The same answer, cut off after so many tokens."""
        if limit is None or len(self.deltas) <= limit:
            return self
        return msgspec.structs.replace(self, deltas=self.deltas[:limit], finish="length")


def chat_answer(asked: ChatRequest, script: Script, model: str) -> Answer:
    """The answer to a conversation: thinking first, then a tool call or words."""
    digest = _digest(model, asked.prompt)
    said: list[Delta] = [Think(word) for word in _words(digest, "hm", script.reasoning_tokens)]
    finish: Finish = "stop"
    calls = _calls(asked, script)
    for index, (name, arguments) in enumerate(calls):
        own = f"{index:x}{digest[1:]}" if index else digest
        said += [Call(own, name, index), *(Arguments(text, index) for text in _split(arguments, ARGUMENT_PIECE))]
    if calls:
        # vLLM finishes a call that was demanded by name with "stop".
        finish = "stop" if isinstance(asked.tool_choice, dict) else "tool_calls"
    elif script.report_results and asked.results:
        said += [Say(piece) for piece in _tokens(f"I have {asked.results} results and {asked.images} images.")]
    else:
        said += [Say(piece) for piece in _pieces(digest, asked.last_user_text, script, model)]
    answer = Answer(
        digest=digest,
        model=model,
        prompt_tokens=asked.prompt_tokens,
        deltas=tuple(said),
        finish=finish,
        ttft_s=script.ttft_s,
        tps=script.tps,
    )
    return answer.within(asked.limit)


def text_answer(asked: CompletionRequest, script: Script, model: str) -> Answer:
    """The continuation of a prompt."""
    words = [word for group in inputs(asked.prompt) for word in group]
    prompt = asked.prompt if isinstance(asked.prompt, str) else " ".join(words)
    digest = _digest(model, prompt)
    answer = Answer(
        digest=digest,
        model=model,
        prompt_tokens=len(words),
        deltas=tuple(Say(piece) for piece in _pieces(digest, prompt, script, model)),
        finish="stop",
        ttft_s=script.ttft_s,
        tps=script.tps,
    )
    return answer.within(asked.max_tokens)


def _calls(asked: ChatRequest, script: Script) -> list[tuple[str, str]]:
    """The calls of an answer, by name and arguments: those of the script that are offered, or an example of one."""
    offered = {tool.function.name for tool in asked.tools or ()}
    if script.calls is not None and not asked.results:
        planned = msgspec.json.decode(script.calls, type=list[ScriptedCall])
        return [(one.name, msgspec.json.encode(one.arguments).decode()) for one in planned if one.name in offered]
    function = called(asked, script)
    return [] if function is None else [(function.name, msgspec.json.encode(_example(function.parameters)).decode())]


def called(asked: ChatRequest, script: Script) -> Function | None:
    """The function that the answer calls, if any.

    1. None is offered, or none is wanted. 2. One is demanded by name, which llama-server takes for "auto".
    3. Any is demanded. 4. The script calls one, but not on the result of the last call, or agents never end.
    """
    if not asked.tools or asked.tool_choice == "none":  # (1)
        return None
    if isinstance(asked.tool_choice, dict) and script.shape == "vllm":  # (2)
        named = asked.tool_choice.get("function")
        name = named.get("name") if isinstance(named, dict) else None
        return next((tool.function for tool in asked.tools if tool.function.name == name), None)
    if asked.tool_choice == "required":  # (3)
        return asked.tools[0].function
    answering_a_tool = bool(asked.messages) and asked.messages[-1].role == "tool"
    return asked.tools[0].function if script.call_tool and not answering_a_tool else None  # (4)


def embedding(words: Iterable[str], model: str, dimensions: int) -> list[float]:
    """A vector that only the same words get; exact in four bytes, so both encodings carry the same numbers."""
    digest = hashlib.shake_256(f"{model}\0{' '.join(words)}".encode()).digest(dimensions)
    return [(byte - 128) / 128 for byte in digest]


def _pieces(digest: str, heard: str, script: Script, model: str) -> list[str]:
    if script.answer is not None:
        return _tokens(script.answer)
    if script.echo:
        return _tokens(heard)
    return _words(digest, model, script.tokens)


def _words(digest: str, first: str, count: int) -> list[str]:
    seed = bytes.fromhex(digest)
    rest = (f" {WORDS[(seed[i % len(seed)] + i) % len(WORDS)]}" for i in range(1, count))
    return [first, *rest] if count else []


def _tokens(text: str) -> list[str]:
    """Words with the white space before them; joined they are the text again."""
    return re.findall(r"\s*\S+|\s+$", text)


def _split(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _digest(model: str, prompt: str) -> str:
    return hashlib.sha256(f"{model}\0{prompt}".encode()).hexdigest()[:32]


def _example(schema: dict[str, object]) -> object:
    """The least value that a JSON schema takes, near enough for a tool call."""
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return EXAMPLES.get(schema.get("type"), {})
    required = schema.get("required")
    names = required if isinstance(required, list) else list(properties)
    return {name: _example(properties[name]) for name in names if isinstance(properties.get(name), dict)}
