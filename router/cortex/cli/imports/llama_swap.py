"""llama-swap's configuration: `models`, each with the command line of its server."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from cortex.cli.imports.draft import FOREVER_S, Draft, Entry
from cortex.cli.imports.local_weights import LocalWeights
from cortex.cli.imports.server_options import LLAMA, VLLM, keep_layers, read_options, share_context

_MACRO = re.compile(r"\$\{([^{}]+)\}")
_DEEPEST = 20
"""Macros inside one another."""
_PORT = "${PORT}"
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty",
)  # fmt: skip
_HARMLESS = {
    "models", "macros", "healthCheckTimeout", "globalTTL", "startPort", "logLevel", "logToStdout", "logTimeFormat",
    "metricsMaxInMemory", "captureBuffer", "hooks", "$schema",
}  # fmt: skip
"""Keys of the file that are read, or have no counterpart that an operator misses."""
_OF_MODEL = {"cmd", "proxy", "aliases", "ttl", "env", "macros", "checkEndpoint", "filters", "useModelName"}
_WHY = {
    "groups": "cortex places models by their memory, and evicts what is idle",
    "matrix": "cortex places models by their memory, and evicts what is idle",
    "profiles": "cortex places models by their memory",
    "peers": "cortex serves what its own hosts run",
    "apiKeys": "make keys with `cortex key new`",
    "cmdStop": "cortex ends the process group of a worker",
    "concurrencyLimit": "`queue` and `target_concurrency` bound requests",
    "unlisted": "keys can be limited to models",
}


class Unresolved(Exception):
    """A macro that is not defined."""


def read(config: Mapping[str, Any], folder: Path, origin: str, weights: LocalWeights) -> Draft:
    """Return the draft of a configuration. Relative paths are taken from `folder`."""
    draft = Draft(origin)
    draft.defaults["idle_after_s"] = _ttl(config.get("globalTTL", 0)) or FOREVER_S
    if isinstance(timeout := config.get("healthCheckTimeout"), int):
        draft.defaults["start_timeout_s"] = max(15, timeout)
    for key in config.keys() - _HARMLESS:
        draft.notes.append(f"{key} is not carried over{_because(key)}")
    preload = _preload(config)
    models = config.get("models")
    for name, model in models.items() if isinstance(models, Mapping) else ():
        entry = Entry(str(name))
        if not isinstance(model, Mapping) or not isinstance(model.get("cmd"), str):
            draft.notes.append(f"{name}: left out: it has no cmd")
            continue
        macros = {**_mapping(config.get("macros")), **_mapping(model.get("macros")), "MODEL_ID": str(name)}
        try:
            _read_model(entry, model, macros, folder, weights)
        except (Unresolved, ValueError) as error:
            draft.notes.append(f"{name}: left out: {error}")
            continue
        entry.keys |= {"baseline": True} if name in preload else {}
        draft.add(entry)
        aliases = model.get("aliases")
        for alias in aliases if isinstance(aliases, list) else ():
            draft.alias(str(alias.get("id") if isinstance(alias, Mapping) else alias), entry.id)
    return draft


def _read_model(
    entry: Entry, model: Mapping[str, Any], macros: Mapping[str, Any], folder: Path, weights: LocalWeights
) -> None:
    """Fill an entry. Raises Unresolved, ValueError for a command that cannot be split."""
    model, variables = {str(key): value for key, value in model.items()}, set[str]()
    words = _split(_expand(model["cmd"], macros, weights.environ, variables))
    for name, value in _env(entry, words, model, macros, weights, variables):
        entry.keys.setdefault("env", {})[name] = value
    if not words:
        raise ValueError("its cmd is empty")
    program = PurePath(words[0]).name
    if "llama-server" in program:
        entry.keys["engine"] = "llamacpp"
        others = read_options(words[1:], LLAMA, entry)
        _set_gguf(entry, others, folder, weights)
        share_context(entry)
        keep_layers(entry, others.get("layers", ""))
    elif (arguments := _of_vllm(words)) is not None:
        entry.keys["engine"] = "vllm"
        others = read_options(arguments, VLLM, entry)
        weights.set_repository(entry, others.get("model") or entry.keys.pop("source", ""), folder)
    else:
        _set_command(entry, words, model)
    if "chat_template" in entry.keys:
        weights.set_path(entry, "chat_template", entry.keys["chat_template"], folder)
    ttl = model.get("ttl", -1)
    if isinstance(ttl, int) and ttl >= 0:
        entry.keys["idle_after_s"] = _ttl(ttl) or FOREVER_S
    _set_filters(entry, _mapping(model.get("filters")))
    for key in sorted(model.keys() - _OF_MODEL):
        if key in _WHY:
            entry.drop([key], _WHY[key])
    entry.drop(model.keys() - _OF_MODEL - _WHY.keys())
    _note_values(entry, {name: weights.environ[name] for name in variables})


def _note_values(entry: Entry, variables: Mapping[str, str]) -> None:
    """Note which variables of this environment the entry has the values of: the configuration had only their names."""
    texts = [*entry.keys.get("command", ()), *entry.keys.get("args", ()), *entry.keys.get("env", {}).values()]
    written = sorted(name for name, value in variables.items() if value and any(value in text for text in texts))
    if written:
        entry.notes.append(f"the value of {', '.join(written)} is written out here, and may be secret")


def _set_gguf(entry: Entry, others: Mapping[str, str], folder: Path, weights: LocalWeights) -> None:
    if source := entry.keys.pop("source", ""):
        weights.set_path(entry, "source", source, folder)
    elif repo := others.get("repo"):
        weights.set_gguf(entry, repo, others.get("file", ""))
    else:
        raise ValueError("its cmd names no model: -m or -hf")
    if mmproj := entry.keys.get("mmproj"):
        weights.set_path(entry, "mmproj", mmproj, folder)


def _of_vllm(words: list[str]) -> list[str] | None:
    """Return the arguments of `vllm serve` or of its module; None for another program."""
    if PurePath(words[0]).name == "vllm" and words[1:2] == ["serve"]:
        return words[2:]
    module = "vllm.entrypoints.openai.api_server"
    return words[words.index(module) + 1 :] if module in words and "-m" in words else None


def _set_command(entry: Entry, words: list[str], model: Mapping[str, Any]) -> None:
    """Keep any other program as a command; its port becomes a placeholder."""
    fixed = re.search(r":(\d+)/?$", str(model.get("proxy", "")))
    ports = {_PORT, *([fixed[1]] if fixed else [])}
    command = [re.sub(r"\$\{PORT\}", "{port}", word) if _PORT in word else word for word in words]
    entry.keys["engine"] = "command"
    entry.keys["command"] = ["{port}" if word in ports else word for word in command]
    check = model.get("checkEndpoint", "/health")
    if check == "none":
        entry.notes.append("checkEndpoint = none: cortex waits for 200 at `health_path`")
    elif check != "/health":
        entry.keys["health_path"] = check
    entry.notes.append("set `vram_mb`: cortex cannot tell how much memory this program needs")


def _set_filters(entry: Entry, filters: Mapping[str, Any]) -> None:
    """Carry over forced sampling parameters as the ones where a client says nothing."""
    params = _mapping(filters.get("setParams"))
    for name in _SAMPLING:
        if name in params:
            entry.sample(name, params[name])
    template = {k: v for k, v in _mapping(params.get("chat_template_kwargs")).items() if isinstance(v, (str, int))}
    if template:
        entry.keys["chat_template_kwargs"] = template
    lost = _mapping(params.get("chat_template_kwargs")).keys() - template.keys()
    entry.drop(f"filters.setParams.chat_template_kwargs.{name}" for name in lost)
    if params.keys() & {*_SAMPLING, "chat_template_kwargs"}:
        entry.notes.append("filters.setParams became defaults: clients that set a parameter themselves override it")
    entry.drop(f"filters.setParams.{name}" for name in params.keys() - {*_SAMPLING, "chat_template_kwargs"})
    entry.drop(f"filters.{name}" for name in filters.keys() - {"setParams"})


def _env(
    entry: Entry,
    words: list[str],
    model: Mapping[str, Any],
    macros: Mapping[str, Any],
    weights: LocalWeights,
    variables: set[str],
) -> list[tuple[str, str]]:
    """Return the variables of a model, and take those that precede its command out of it."""
    declared = model.get("env")
    pairs = [
        _expand(str(pair), macros, weights.environ, variables)
        for pair in (declared if isinstance(declared, list) else ())
    ]
    if words and PurePath(words[0]).name == "env":
        words.pop(0)
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
        pairs.append(words.pop(0))
    split = [(name, value) for name, _, value in (pair.partition("=") for pair in pairs)]
    visible = [name for name, _ in split if name.endswith("VISIBLE_DEVICES")]
    entry.drop(visible, "cortex chooses devices; `pinned_on` and `labels` limit the choice")
    return [(name, value) for name, value in split if name not in visible]


def _expand(text: str, macros: Mapping[str, Any], environ: Mapping[str, str], variables: set[str]) -> str:
    """Replace macros, also those inside macros; `${PORT}` stays. Adds the names of environment variables to
    `variables`. Raises Unresolved."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in ("PORT", "PID"):
            return match[0]
        if name.startswith("env."):
            if name[4:] not in environ:
                raise Unresolved(f"the variable {name[4:]} is not set here")
            variables.add(name[4:])
            return environ[name[4:]]
        if name not in macros:
            raise Unresolved(f"the macro {name} is not defined")
        return str(macros[name])

    for _ in range(_DEEPEST):
        result = _MACRO.sub(value, text)
        if result == text:
            return text
        text = result
    raise Unresolved(f"its macros lead deeper than {_DEEPEST} levels")


def _split(command: str) -> list[str]:
    lines = (line for line in command.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#"))
    return shlex.split("\n".join(lines))


def _preload(config: Mapping[str, Any]) -> set[str]:
    startup = _mapping(_mapping(config.get("hooks")).get("on_startup"))
    names = startup.get("preload")
    return {str(name) for name in names} if isinstance(names, list) else set()


def _ttl(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _because(key: str) -> str:
    return f": {_WHY[key]}" if key in _WHY else ""
