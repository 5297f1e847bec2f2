"""Ollama's store: a manifest per model, whose layers are files named by their digest."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cortex.cli.imports.draft import Draft, Entry
from cortex.platform.weights import gguf_head

FOLDERS = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/models")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAYER = "application/vnd.ollama.image."
_CONTEXT = "4096"
"""Ollama's context where neither the model nor OLLAMA_CONTEXT_LENGTH says another."""
_EMBEDDER = re.compile("embed|rerank", re.IGNORECASE)
"""A name of a model that inherits a chat template from the one that it was trained from."""
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty",
)  # fmt: skip
_POOLING = {1: "embed", 2: "embed", 3: "embed", 4: "rerank"}
"""llama.cpp's kinds of pooling: mean, first, last; rank."""


def read(folder: Path, origin: str, environ: Mapping[str, str]) -> Draft:
    """Return the draft of a store."""
    draft = Draft(origin)
    slots = environ.get("OLLAMA_NUM_PARALLEL", "")
    context = environ.get("OLLAMA_CONTEXT_LENGTH", "")
    for path in sorted(p for p in (folder / "manifests").rglob("*") if p.is_file() and not p.name.startswith(".")):
        parts = path.relative_to(folder / "manifests").parts
        if len(parts) != 4:
            continue
        entry = Entry(_name(*parts), {"engine": "llamacpp"})
        try:
            layers = list(_layers(json.loads(path.read_bytes()), folder))
            _read_layers(entry, layers)
        except (OSError, ValueError, TypeError, KeyError) as error:
            draft.notes.append(f"{entry.id}: left out: {error}")
            continue
        entry.keys.setdefault("context", int(context if context.isdigit() and int(context) else _CONTEXT))
        entry.keys["target_concurrency"] = int(slots) if slots.isdigit() and int(slots) else 1
        draft.add(entry)
        if entry.id.endswith(":latest"):
            draft.alias(entry.id.removesuffix(":latest"), entry.id)
    return draft


def model(folder: Path, name: str, environ: Mapping[str, str]) -> Entry | None:
    """Return one model of a store by the name that Ollama's clients use; None if it is not there."""
    draft = read(folder, "", environ)
    return draft.entries.get(draft.aliases.get(name, name))


def _name(registry: str, namespace: str, model: str, tag: str) -> str:
    parts = [p for p in (registry, namespace) if p not in ("registry.ollama.ai", "library")]
    return "/".join([*parts, f"{model}:{tag}"])


def _layers(manifest: Any, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the kind and the file of each layer. Raises ValueError."""
    for layer in manifest.get("layers") or ():
        kind, digest = str(layer["mediaType"]), str(layer["digest"])
        if not _DIGEST.fullmatch(digest):
            raise ValueError("its manifest has a digest that is none")
        yield kind.removeprefix(_LAYER).partition(";")[0], folder / "blobs" / digest.replace(":", "-")


def _read_layers(entry: Entry, layers: list[tuple[str, Path]]) -> None:
    """Fill an entry. Raises OSError, ValueError."""
    files = [path for kind, path in layers if kind == "model"]
    if not files:
        raise ValueError("it has no weights in one GGUF on this machine (a model in the cloud, or in another format)")
    if missing := [path for path in files if not path.exists()]:
        raise ValueError(f"its weights {missing[0]} are not on this machine")
    entry.keys["source"] = str(files[0])
    head = gguf_head.read(files[0])
    architecture = str(head.get("general.architecture", ""))
    task = _POOLING.get(_int(head.get(f"{architecture}.pooling_type")))
    chats = "tokenizer.chat_template" in head and not _EMBEDDER.search(entry.id)
    if task and not chats:
        entry.keys["task"] = task
    for kind, path in layers:
        if kind == "params":
            _read_parameters(entry, json.loads(path.read_bytes()))
        elif kind == "projector":
            entry.keys["mmproj"] = str(path)
        elif kind == "adapter":
            entry.notes.append("its adapter is not carried over: this is the model without it")
        elif kind == "system":
            entry.notes.append("its system prompt is not carried over: clients send their own")
        elif kind == "messages":
            entry.notes.append("its example messages are not carried over")
        elif kind == "template" and "tokenizer.chat_template" not in head and "task" not in entry.keys:
            entry.notes.append(
                "its template is in Ollama's form, and its GGUF has none: set `chat_template` to a Jinja file"
            )
    if len(files) > 1:
        entry.notes.append("only the first of its files of weights is used")


def _read_parameters(entry: Entry, parameters: Mapping[str, Any]) -> None:
    others = dict(parameters)
    for name in _SAMPLING:
        if name in others:
            entry.sample(name, others.pop(name))
    if (context := _int(others.pop("num_ctx", None))) > 0:
        entry.keys["context"] = context
    if (length := _int(others.pop("num_predict", None))) > 0:
        entry.keys["default_output_tokens"] = length
    others.pop("num_gpu", None)
    if "stop" in others:
        entry.drop(["stop"], "the model's own end of turn ends an answer; clients may send stop strings")
        del others["stop"]
    entry.drop(others)


def _int(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
