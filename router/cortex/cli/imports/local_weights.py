"""Weights that are on this machine already: paths, the caches of llama.cpp and of HuggingFace."""

import os
import re
from pathlib import Path

from cortex.cli.imports.draft import Entry

_SPLIT = re.compile(r"-(\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)
_TAG = re.compile(r"[A-Za-z0-9_]+")


class LocalWeights:
    """Looks weights up on this machine. `environ` are the variables that move the caches."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self.home, self.environ = home, environ

    def set_path(self, entry: Entry, key: str, text: str, folder: Path) -> None:
        """Set a key to a file's path; a relative one is taken from `folder`. A missing file is noted."""
        path = Path(os.path.normpath(folder / Path(text).expanduser()))
        entry.keys[key] = str(path)
        if not path.exists():
            entry.notes.append(f"{path} is not on this machine")

    def set_gguf(self, entry: Entry, repo: str, file: str) -> None:
        """Set the source to a GGUF of a repository (`org/name` or `org/name:TAG`): a file on this machine, or the
        repository."""
        name, _, tag = repo.partition(":")
        caches = (self._llama_cache(name, file or tag), *self._hub_files(name, file or tag))
        copy = next((path for path in caches if path is not None), None)
        if copy is not None:
            entry.keys["source"] = str(copy)
        elif file:
            entry.keys["source"] = f"{name}:{file}"
        else:
            entry.keys["source"] = name
            if tag and _TAG.fullmatch(tag):
                entry.keys["quant"] = tag

    def set_repository(self, entry: Entry, repo: str, folder: Path) -> None:
        """Set the source to a whole model: a folder, a snapshot in HuggingFace's cache, or the repository."""
        if repo.startswith(("/", "~", ".")):
            self.set_path(entry, "source", repo, folder)
            return
        snapshot = None if entry.keys.get("revision") else self._snapshot(repo)
        is_whole = snapshot is not None and (snapshot / "config.json").exists() and any(snapshot.glob("*.safetensors"))
        entry.keys["source"] = str(snapshot) if is_whole else repo

    def _llama_cache(self, repo: str, part: str) -> Path | None:
        cache = self.environ.get("XDG_CACHE_HOME") or str(self.home / ".cache")
        folder = Path(self.environ.get("LLAMA_CACHE") or f"{cache}/llama.cpp")
        prefix = repo.replace("/", "_") + "_"
        return _only(part, sorted(p for p in _files(folder) if p.name.startswith(prefix)))

    def _hub_files(self, repo: str, part: str) -> list[Path | None]:
        snapshot = self._snapshot(repo)
        return [_only(part, sorted(snapshot.rglob("*.gguf")))] if snapshot is not None else []

    def _snapshot(self, repo: str) -> Path | None:
        """Return the newest state of a repository's main branch in HuggingFace's cache."""
        cache = self.environ.get("XDG_CACHE_HOME") or str(self.home / ".cache")
        hub = self.environ.get("HF_HUB_CACHE") or f"{self.environ.get('HF_HOME') or f'{cache}/huggingface'}/hub"
        folder = Path(hub) / f"models--{repo.replace('/', '--')}"
        try:
            commit = (folder / "refs" / "main").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        snapshot = folder / "snapshots" / commit
        return snapshot if commit.isalnum() and snapshot.is_dir() else None


def _files(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.suffix == ".gguf"]
    except OSError:
        return []


def is_later_part(path: Path) -> bool:
    """Whether a file is a part of a split GGUF and not its first."""
    match = _SPLIT.search(path.name)
    return match is not None and match[1] != "00001"


def _only(part: str, files: list[Path]) -> Path | None:
    """Return the one model among files whose names contain a file's name or tag; None if there are none or several."""
    text = part.lower().replace("/", "_") if part else ""
    models = [f for f in files if "mmproj" not in f.name.lower() and not is_later_part(f) and text in f.name.lower()]
    return models[0] if len(models) == 1 else None
