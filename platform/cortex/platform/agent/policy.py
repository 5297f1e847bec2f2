"""Which functions an agent may start: `[agent] allow_engines`, `commands`, `allow_code` and `weight_roots`. Pure.

A caller with a token may send any function, even one that is in no catalogue. On loopback, with none of the first three
set, the agent starts every function: a local caller can run programs anyway. An agent on a network, or with one of
these settings, is strict: it runs only the programs that `commands` lists, and rejects variables, options and pickled
weights that make an engine load the caller's code, unless `allow_code` names them.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from cortex.functions.spec import Engine, Function
from cortex.platform.serving.address import is_loopback
from cortex.platform.settings import Agent

ANY = "*"
PICKLES = "allow_pickle"

CODE_VARIABLE = re.compile(
    r"^(?:LD_|DYLD_|PYTHON|PERL|RUBY|NODE_|JAVA_|JDK_|BASH|GLIBC_|GCONV_|XDG_|LLAMA_ARG_|GIT_|PIP_|UV_)"
    r"|^(?:ENV|IFS|SHELLOPTS|HOME|TMPDIR|VIRTUAL_ENV|CC|CXX|CUDA_HOME|VLLM_CONFIG_ROOT|VLLM_LOGGING_CONFIG_PATH)$"
    r"|(?:PATH|CACHE_DIR|CACHE_ROOT|CACHE_HOME|HF_HOME)$|_PATH_|INJECTION|PLUGIN|PRELOAD|LIBRAR|INSECURE|TRUST_|REMOTE_CODE|PICKLE|DEV_MODE"
)
"""Names of variables by which a loader, an interpreter or an engine loads code or settings from elsewhere."""

CODE_OPTIONS = frozenset(
    (
        # vLLM: classes and modules by name, settings from files, code of a repository.
        "config", "middleware", "worker-cls", "worker-extension-cls", "scheduler-cls", "logits-processors",
        "tool-parser-plugin", "reasoning-parser-plugin", "io-processor-plugin", "log-config-file",
        "kv-transfer-config", "ec-transfer-config", "trust-remote-code", "trust-request-chat-template",
        "allowed-local-media-path", "hf-config-path", "model", "tokenizer", "download-dir", "lora-modules",
        "host", "port", "uds", "api-key", "root-path",
        # llama.cpp: tools that run programs, other weights, folders that are served or written.
        "tools", "rpc", "path", "media-path", "slot-save-path", "log-file", "models-dir", "models-preset",
        "webui-mcp-proxy", "ui-mcp-proxy", "model-url", "hf-repo", "hf-file", "hf-repo-draft", "docker-repo",
        "lookup-cache-dynamic", "api-key-file", "config-file",
    )
)  # fmt: skip
"""Options by which an engine loads code, serves or writes files of the caller's choice, or listens elsewhere."""
HARMLESS = frozenset(("reasoning-parser", "lora"))
"""Separate options whose name is also a prefix of one of those."""
SHORT_OPTIONS = frozenset(("-m", "-mu", "-hf", "-hfr", "-hff", "-hfd", "-hfrd", "-dr", "-lcd"))


def refusal(function: Function, agent: Agent) -> str:
    """Return why this host may not start a function, with the setting that decides it; "" if it may."""
    if agent.allow_engines and function.engine not in agent.allow_engines:
        engines = ", ".join(agent.allow_engines)
        return f"this host runs no engine '{function.engine}': its `[agent] allow_engines` has {engines}"
    if outside := _outside(function, agent):
        return f"the path {outside} is outside `[agent] weight_roots` of this host"
    return _code(function, agent) if is_strict(agent) else ""


def is_strict(agent: Agent) -> bool:
    """Return whether an agent starts only what its settings list: on a network, or with one of them set."""
    return not is_loopback(agent.listen) or bool(agent.allow_engines or agent.commands or agent.allow_code)


def _code(function: Function, agent: Agent) -> str:
    """Return why a function would run code that no setting allows, or ""."""
    if function.engine is Engine.COMMAND and not any(_begins(function.command, c) for c in agent.commands):
        program = function.command[0] if function.command else ""
        return (
            f"this host does not run '{program}': its `[agent] commands` does not list the first words of the command"
        )
    if ANY in agent.allow_code:
        return ""
    for name in function.env:
        if CODE_VARIABLE.search(name.upper()) and name not in agent.allow_code:
            return f"the variable {name} can load code: `[agent] allow_code` of this host does not list it"
    if function.engine in (Engine.VLLM, Engine.LLAMACPP):
        for option in _options(function.args):
            if _loads_code(option) and option not in agent.allow_code:
                return f"the option {option} can load code or files: `[agent] allow_code` of this host does not list it"
    if function.allow_pickle and PICKLES not in agent.allow_code:
        return f"`allow_pickle` runs code in weights: `[agent] allow_code` of this host does not list '{PICKLES}'"
    return ""


def _begins(command: Sequence[str], entry: str) -> bool:
    """Return whether a command begins with the words of an entry of `commands`."""
    words = shlex.split(entry)
    return entry == ANY or (bool(words) and list(command[: len(words)]) == words)


def _options(args: Sequence[str]) -> Iterator[str]:
    """Yield the options of an argv, without their values."""
    for word in args:
        if word.startswith("-"):
            yield word.partition("=")[0]


def _loads_code(option: str) -> bool:
    """Return whether an option loads code, in any accepted spelling: `--worker_cls`, `--worker-c`, `--x.y`."""
    if option in SHORT_OPTIONS:
        return True
    name = option.lstrip("-").replace("_", "-").lower().partition(".")[0]
    return (
        name not in HARMLESS
        and len(name) > 1
        and option.startswith("--")
        and any(code.startswith(name) for code in CODE_OPTIONS)
    )


def _outside(function: Function, agent: Agent) -> str:
    """Return a path in a function's fields or options outside the roots; "" without roots."""
    if not agent.weight_roots or function.engine is Engine.COMMAND:
        return ""
    roots = [Path(root).expanduser() for root in (*agent.weight_roots, agent.cache_dir)]
    for path in _paths((function.chat_template, function.mmproj, *function.args)):
        real = Path(path).expanduser()
        if ".." in real.parts or not any(real.is_relative_to(root) for root in roots):
            return path
    return ""


def _paths(words: Sequence[str]) -> Iterator[str]:
    """Yield the words that look like a path, also after `=` and inside JSON. vLLM's inline templates, which have
    braces, contain none."""
    for word in words:
        if "{{" in word or "{%" in word:
            continue
        for piece in re.split(r"[=,:\s\"'\[\]{}]+", word):
            if piece.startswith(("/", "~", "./", "../")):
                yield piece
