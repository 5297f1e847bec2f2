"""What in `args` of a function cannot work: what cortex gives the engine itself, and two words in one. Pure.

An engine takes the last of two equal options, so a copied `--port` makes it listen where cortex does not look.
"""

import re
from collections.abc import Iterator, Mapping

from cortex.functions.spec import Engine, Function

_TWO_WORDS = re.compile(r"(--?[A-Za-z][\w.-]*)\s+(\S.*)", re.DOTALL)
_MODEL, _ID = "set `source`", "clients call it by its `id`"
_KEY = "cortex makes a key for each worker"

_ALWAYS = {
    "--host": "[agent] worker_host is where workers listen",
    "--port": "cortex chooses the port of each worker",
}
_SET_BY_CORTEX: Mapping[Engine, Mapping[str, str]] = {
    Engine.LLAMACPP: {
        **_ALWAYS,
        **dict.fromkeys(("-m", "--model", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), _MODEL),
        **dict.fromkeys(("-mu", "--model-url"), _MODEL),
        **dict.fromkeys(("-a", "--alias", "--model-alias"), _ID),
        **dict.fromkeys(("--api-key", "--api-key-file"), _KEY),
    },
    Engine.VLLM: {
        **_ALWAYS,
        "--model": _MODEL,
        "--served-model-name": _ID,
        "--api-key": _KEY,
        **dict.fromkeys(("-tp", "--tensor-parallel-size"), "set `min_devices`"),
        "--gpu-memory-utilization": "cortex computes it from the placement: set `vram_mb`",
    },
}
"""What cortex always gives an engine, or has a key for, and what to do instead."""
_GIVEN_IF_SET: Mapping[Engine, Mapping[str, str]] = {
    Engine.LLAMACPP: {
        **dict.fromkeys(("-c", "--ctx-size", "--n-ctx"), "context"),
        **dict.fromkeys(("-mm", "--mmproj", "--clip-model-path"), "mmproj"),
        **dict.fromkeys(("--embedding", "--embeddings", "--rerank", "--reranking"), "task"),
        "--chat-template-file": "chat_template",
        **dict.fromkeys(("--lora", "--lora-scaled", "--lora-init-without-apply"), "adapters"),
    },
    Engine.VLLM: {
        "--max-model-len": "context",
        "--dtype": "dtype",
        "-q": "quant",
        "--quantization": "quant",
        "--chat-template": "chat_template",
        "--tool-call-parser": "tool_parser",
        "--reasoning-parser": "reasoning_parser",
        **dict.fromkeys(("--enable-lora", "--lora-modules"), "adapters"),
    },
}
"""What cortex gives an engine where the function sets a key."""
_SHORT = 80


def problems(function: Function) -> Iterator[tuple[str, str]]:
    """Yield the key and the problem of every argument that cannot work. The fake engine takes any."""
    if function.engine is Engine.FAKE:
        return
    for word in function.args:
        if match := _TWO_WORDS.fullmatch(word):
            yield "args", f'"{_short(word)}" is one argument: write "{match[1]}", "{_short(match[2])}"'
    for what in duplicates(function):
        yield "args", what


def duplicates(function: Function) -> Iterator[str]:
    """Yield a problem for every argument that cortex gives the engine itself."""
    if function.engine is Engine.FAKE:
        return
    command = function.engine is Engine.COMMAND
    own = _of_command(function.command) if command else _SET_BY_CORTEX[function.engine]
    if_set = _GIVEN_IF_SET.get(function.engine, {})
    for word in function.args:
        name = _with_dashes(word.partition("=")[0])
        key = if_set.get(name, "")
        if name in own:
            yield f"cortex gives {name} itself: leave it out; {own[name]}"
        elif key and getattr(function, key) not in ("", 0, "auto", ()):
            yield f"cortex gives {name} itself, from `{key}`: leave one of the two out"


def _of_command(command: tuple[str, ...]) -> dict[str, str]:
    """Return the options of a command whose values cortex fills in."""
    own = {}
    for before, word in zip(("", *command), command, strict=False):
        option = word.partition("=")[0] if word.startswith("-") else before
        if "{" in word and option.startswith("-"):
            own[_with_dashes(option)] = "the command has it"
    return own


def _with_dashes(name: str) -> str:
    """Return a long option with dashes, for which engines take underscores too."""
    return name.replace("_", "-") if name.startswith("--") else name


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
