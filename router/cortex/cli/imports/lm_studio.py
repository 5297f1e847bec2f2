"""LM Studio's models: `publisher/repository/file.gguf`, and the defaults that a user gave each of them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cortex.cli.imports.draft import Draft, Entry
from cortex.cli.imports.local_weights import is_later_part

HOMES = ("~/.lmstudio", "~/.cache/lm-studio")
_DEFAULTS = ".internal/user-concrete-model-default-config"
_QUANT = re.compile(r"[-.]((?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))(?:-00001-of-\d+)?$", re.IGNORECASE)
_SAMPLING = {
    "llm.prediction.temperature": "temperature",
    "llm.prediction.topKSampling": "top_k",
    "llm.prediction.topPSampling": "top_p",
    "llm.prediction.minPSampling": "min_p",
    "llm.prediction.repeatPenalty": "repeat_penalty",
    "llm.prediction.llama.topKSampling": "top_k",
    "llm.prediction.llama.topPSampling": "top_p",
    "llm.prediction.llama.minPSampling": "min_p",
    "llm.prediction.llama.repeatPenalty": "repeat_penalty",
    "llm.prediction.llama.presencePenalty": "presence_penalty",
    "llm.prediction.llama.frequencyPenalty": "frequency_penalty",
}
_CONTEXT = "llm.load.contextLength"
_SLOTS = "llm.load.numParallelSessions"
_LENGTH = "llm.prediction.maxPredictedTokens"


def models_folder(home: Path) -> Path:
    """Return where LM Studio keeps models: `downloadsFolder` of its settings, else `models`; or the folder itself if it
    has models."""
    try:
        settings = json.loads((home / "settings.json").read_bytes())
        folder = settings.get("downloadsFolder")
    except (OSError, ValueError, AttributeError):
        folder = None
    if isinstance(folder, str) and folder:
        return Path(folder).expanduser()
    has_models = not (home / "models").is_dir() and next(home.glob("*/*/*.gguf"), None) is not None
    return home if has_models else home / "models"


def read(home: Path, origin: str) -> Draft:
    """Return the draft of a home folder, or of a folder of models."""
    draft = Draft(origin)
    folder = models_folder(home)
    for repository in sorted(p for p in folder.glob("*/*") if p.is_dir()):
        name = "/".join(repository.parts[-2:])
        files = sorted(p for p in repository.rglob("*.gguf") if not is_later_part(p))
        encoders = [p for p in files if "mmproj" in p.name.lower()]
        models = [p for p in files if p not in encoders]
        for file in models:
            entry = Entry(name if len(models) == 1 else f"{name}:{_tag(file)}")
            entry.keys |= {"engine": "llamacpp", "source": str(file)}
            if encoders:
                entry.keys["mmproj"] = str(encoders[0])
            _read_defaults(entry, home / _DEFAULTS / f"{file.relative_to(folder)}.json")
            draft.add(entry)
            if file is models[0]:
                draft.alias(repository.name.lower().removesuffix("-gguf"), entry.id)
        if not models and (repository / "config.json").exists():
            _add_folder(draft, name, repository)
        elif not models:
            draft.notes.append(f"{name}: left out: it has no GGUF file of a model and no config.json")
    return draft


def _add_folder(draft: Draft, name: str, repository: Path) -> None:
    """Add a model in safetensors; those for MLX run on Apple's machines only."""
    try:
        config = json.loads((repository / "config.json").read_bytes())
    except (OSError, ValueError):
        draft.notes.append(f"{name}: left out: its config.json cannot be read")
        return
    is_mlx = "mlx" in name.lower() or (isinstance(config, dict) and "quantization" in config)
    if is_mlx:
        draft.notes.append(f"{name}: left out: no engine of cortex runs MLX; use the model's GGUF or safetensors")
        return
    draft.add(Entry(name, {"engine": "vllm", "source": str(repository)}))
    draft.alias(repository.name.lower(), name)


def _tag(file: Path) -> str:
    match = _QUANT.search(file.stem)
    return match[1].upper() if match else file.stem


def _read_defaults(entry: Entry, path: Path) -> None:
    """Carry over what a user set for a file."""
    try:
        defaults = json.loads(path.read_bytes())
        pairs = [
            (str(field["key"]), _value(field.get("value")))
            for part in ("load", "operation")
            for field in (defaults.get(part) or {}).get("fields") or ()
        ]
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        entry.notes.append(f"{path} cannot be read: its defaults are not carried over")
        return
    others = []
    for key, value in pairs:
        if value is None:  # switched off
            continue
        if key in _SAMPLING:
            entry.sample(_SAMPLING[key], value)
        elif key == _CONTEXT and isinstance(value, int):
            entry.keys["context"] = value
        elif key == _SLOTS and isinstance(value, int):
            entry.keys["target_concurrency"] = max(1, value)
        elif key == _LENGTH and isinstance(value, int):
            entry.keys["default_output_tokens"] = value
        else:
            others.append(key)
    entry.drop(others)


def _value(value: Any) -> Any:
    """Return a setting's value; None for one that has a switch, which is off."""
    if isinstance(value, Mapping) and "checked" in value:
        return value.get("value") if value["checked"] else None
    return value
