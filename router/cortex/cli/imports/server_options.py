"""The command line of `llama-server` or `vllm serve`, as the keys of an entry. Pure.

An option that cortex has a key for becomes that key, one that cortex gives itself is left out, one that contradicts
cortex's own placement is noted, and all others become `args`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from cortex.cli.imports.draft import Entry


class Option(Struct, frozen=True):
    """What an option becomes: a key, a sampling parameter, or nothing."""

    key: str = ""
    sampling: str = ""
    flag: Any = None
    """The key's value, for an option without a value."""
    has_value: bool = True
    why: str = ""
    """Why it is not carried over; empty for what cortex does by itself."""


def _all(names: str, option: Option) -> dict[str, Option]:
    return dict.fromkeys(names.split(), option)


_PLACES = "cortex chooses devices; `min_devices`, `pinned_on` and `labels` limit the choice"
_KEYS = "cortex makes a key for each worker; clients get theirs from `cortex key new`"
_SWITCH = Option(has_value=False)

LLAMA: Mapping[str, Option] = {
    **_all("-m --model", Option("source")),
    **_all("-hf -hfr --hf-repo", Option("repo")),
    **_all("-hff --hf-file", Option("file")),
    **_all("-mu --model-url", Option(why="download the file, and set `source`")),
    **_all("-mm --mmproj", Option("mmproj")),
    **_all("-c --ctx-size", Option("context")),
    **_all("-np --parallel", Option("target_concurrency")),
    **_all("--chat-template-file", Option("chat_template")),
    **_all("--embedding --embeddings", Option("task", flag="embed", has_value=False)),
    **_all("--rerank --reranking", Option("task", flag="rerank", has_value=False)),
    **_all("--host --port -a --alias", Option()),
    **_all("--api-key --api-key-file", Option(why=_KEYS)),
    **_all("--metrics --no-webui --no-ui -cb --cont-batching", _SWITCH),
    **_all("-ngl --gpu-layers --n-gpu-layers", Option("layers")),
    **_all("-ts --tensor-split -mg --main-gpu -dev --device", Option(why=_PLACES)),
    **_all("--temp --temperature", Option(sampling="temperature")),
    "--top-k": Option(sampling="top_k"),
    "--top-p": Option(sampling="top_p"),
    "--min-p": Option(sampling="min_p"),
    "--repeat-penalty": Option(sampling="repeat_penalty"),
    "--presence-penalty": Option(sampling="presence_penalty"),
    "--frequency-penalty": Option(sampling="frequency_penalty"),
}  # fmt: skip
VLLM: Mapping[str, Option] = {
    "--model": Option("source"),
    "--revision": Option("revision"),
    "--max-model-len": Option("context"),
    "--max-num-seqs": Option("target_concurrency"),
    **_all("-tp --tensor-parallel-size", Option("min_devices")),
    "--dtype": Option("dtype"),
    **_all("-q --quantization", Option("quant")),
    "--chat-template": Option("chat_template"),
    "--tool-call-parser": Option("tool_parser"),
    "--reasoning-parser": Option("reasoning_parser"),
    **_all("--enable-auto-tool-choice --enable-reasoning", _SWITCH),
    **_all("--host --port --served-model-name", Option()),
    "--api-key": Option(why=_KEYS),
    "--gpu-memory-utilization": Option(why="cortex computes it from the placement: set `vram_mb`"),
}
_NUMBERS = ("context", "target_concurrency", "min_devices")
_MOST_LAYERS = 99
"""So many layers on the GPU are all, which cortex does by itself."""
_COUNT = re.compile(r"(\d+)([kK]?)")


def read_options(words: Sequence[str], options: Mapping[str, Option], entry: Entry) -> dict[str, str]:
    """Give an entry the keys and `args` of a command line, without its program. Return what is no key of its own: the
    options `repo`, `file` and `layers`, and the first word that is no option as `model`."""
    others: dict[str, str] = {}
    args: list[str] = []
    rest = list(words)
    if rest and not rest[0].startswith("-"):
        others["model"] = rest.pop(0)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        option = options.get(name.replace("_", "-")) if word.startswith("-") else None
        if option is None:
            args.append(word)
            continue
        if option.has_value and not equals:
            value = rest.pop(0) if rest else ""
        if option.why:
            entry.drop([name], option.why)
        elif option.key in ("repo", "file", "layers"):
            others[option.key] = value
        elif option.key:
            _set(entry, option, name, value, args)
        elif option.sampling:
            entry.sample(option.sampling, _number(value))
    if args:
        entry.keys["args"] = args
    return others


def _set(entry: Entry, option: Option, name: str, value: str, args: list[str]) -> None:
    if option.flag is not None:
        entry.keys[option.key] = option.flag
    elif option.key not in _NUMBERS:
        entry.keys[option.key] = value
    elif match := _COUNT.fullmatch(value):
        count = int(match[1]) * (1000 if match[2] == "k" else 1024 if match[2] else 1)
        if count:
            entry.keys[option.key] = count
    elif not value.startswith("-"):  # `auto`, or a form that only the engine knows; -1 is its own choice
        args += [name, value]


def share_context(entry: Entry) -> None:
    """Make llama.cpp's context, which all slots share, the context of one request; it has one slot by default."""
    slots = entry.keys.setdefault("target_concurrency", 1)
    if context := entry.keys.get("context"):
        entry.keys["context"] = max(1, context // slots)


def keep_layers(entry: Entry, layers: str) -> None:
    """Keep a number of layers on the GPU that is not all of them."""
    if layers.isdigit() and int(layers) < _MOST_LAYERS:
        entry.keys["args"] = [*entry.keys.get("args", ()), "--n-gpu-layers", layers]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
