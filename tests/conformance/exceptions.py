"""The cases that do not pass, with the errors that each may have and the reason. Pure."""

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

LLAMA, VLLM_SHAPE, LLAMA_SHAPE, REASONS = "llama.cpp", "fake-vllm", "fake-llama", "fake-reasons"
"""The functions under test."""
EVERY = (LLAMA, VLLM_SHAPE, LLAMA_SHAPE, REASONS)


class Result(Struct, frozen=True, kw_only=True):
    """What a suite reports of one case. `passed` is false for a skipped one, too."""

    format: str
    function: str
    case: str
    passed: bool
    errors: tuple[str, ...] = ()


class Exempt(Struct, frozen=True, kw_only=True):
    """Cases of one format that do not pass with some functions. Each error matches `errors`."""

    format: str
    functions: tuple[str, ...]
    cases: tuple[str, ...]
    errors: str
    why: str

    def covers(self, result: Result) -> bool:
        """Whether it is about this case."""
        return (self.format, True, True) == (
            result.format,
            result.function in self.functions,
            result.case in self.cases,
        )


_PLAIN = ("chat-basic-response", "chat-system-prompt", "chat-multi-turn", "chat-reasoning-summary")
_ABLE = ("chat-tool-calling", "chat-image-input")
_NO_TOOLS = "the tiny model's chat template has no tools, so a demanded call is refused"
_NO_IMAGES = "the tiny model sees no images, so they are refused"
_REFUSED = r"HTTP 400|(id|output|choices|content) is (missing or )?empty|expected|found|no content"
_NO_KEYS = r"'(logprobs|refusal)' is a required property"
_UNCHANGED = "and an answer in the engine's own dialect passes unchanged"


def _exempt(format: str, functions: tuple[str, ...], cases: tuple[str, ...], errors: str, why: str) -> Exempt:
    return Exempt(format=format, functions=functions, cases=cases, errors=errors, why=why)


EXCEPTIONS = (
    _exempt("openai-chat", (LLAMA,), _PLAIN, _NO_KEYS, f"llama.cpp sends no such keys, {_UNCHANGED}"),
    _exempt("openai-chat", (LLAMA_SHAPE,), (*_PLAIN, *_ABLE), _NO_KEYS, f"llama.cpp sends no such keys, {_UNCHANGED}"),
    _exempt(
        "openai-chat",
        (VLLM_SHAPE, REASONS),
        (*_PLAIN, *_ABLE),
        r"(annotations|function_call|service_tier|system_fingerprint|prompt_tokens_details): None is not",
        f"vLLM sends null for what it has no value for, {_UNCHANGED}",
    ),
    _exempt("openai-chat", (LLAMA,), ("chat-tool-calling",), _REFUSED, _NO_TOOLS),
    _exempt("openai-chat", (LLAMA,), ("chat-image-input",), _REFUSED, _NO_IMAGES),
    _exempt("open-responses", (LLAMA,), ("tool-calling",), _REFUSED, _NO_TOOLS),
    _exempt("open-responses", (LLAMA,), ("image-input",), _REFUSED, _NO_IMAGES),
    _exempt(
        "open-responses",
        (REASONS,),
        ("streaming-response", "streaming-usage"),
        r"unknown SSE event type: response\.reasoning_text\.",
        "the events have OpenAI's names; Open Responses has others for reasoning, which OpenAI's SDKs do not know",
    ),
    _exempt("anthropic", (LLAMA,), ("anth-tool-calling",), _REFUSED, _NO_TOOLS),
    _exempt("anthropic", (LLAMA,), ("anth-image-input",), _REFUSED, _NO_IMAGES),
)


def verdicts(results: Iterable[Result], exceptions: Iterable[Exempt] = EXCEPTIONS) -> Iterator[str]:
    """Yield what is wrong with a run: (1) a case that does not pass and is not listed, (2) a listed one with an error
    of another kind, (3) a listed one that passes."""
    exceptions = (*exceptions,)
    for result in results:
        name = f"{result.format}: {result.function}: {result.case}"
        listed = next((e for e in exceptions if e.covers(result)), None)
        if result.passed and listed is not None:  # (3)
            yield f"{name}: it passes, but is listed as failing: {listed.why}"
        if result.passed:
            continue
        if listed is None:  # (1)
            yield f"{name}: {'; '.join(result.errors)}"
            continue
        unknown = [error for error in result.errors if not re.search(listed.errors, error)]
        if unknown:  # (2)
            yield f"{name}: {'; '.join(unknown)}"
