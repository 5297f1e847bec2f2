"""The weights that a host keeps: what there is, who uses it, and taking away what nobody does.

Only what cortex put there is ever removed: downloads, the demo's model, and what is left of downloads that were
never finished. Files an operator put in place, by hand or as a path, are listed and left alone. Nothing goes that an
instance was started from, or that a fetch is working on.
"""

import contextlib
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from msgspec.structs import replace

from cortex.functions.sources import BadSource, Demo, Local, Repo, Source, source_of
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Remove, Removed, Stored
from cortex.platform.weights.hub import OURS_MARK
from cortex.platform.weights.store import MIB, Manifest, WeightsUnavailable, demo_path, find, hub_cache, manifest

OURS = ("hub", "demo", "partial")
"""Kinds that may be removed."""


def inventory(cache: Path, declared: Collection[Function], running: Collection[str]) -> list[Stored]:
    """Return all weights on this host. `running` are the paths that instances were started from."""
    found = {s.name: s for f in declared if (s := apart(f, cache)) is not None}
    return with_users([*in_cache(cache), *found.values()], declared, running, cache)


def in_cache(cache: Path) -> list[Stored]:
    """Return what cortex put into its cache."""
    return [*_downloads(cache), *_demos(cache), *_left_over(cache)]


def apart(function: Function, cache: Path) -> Stored | None:
    """Return a function's weights if an operator put them in place."""
    try:
        source, here = source_of(function), find(function, cache)
    except (BadSource, WeightsUnavailable, OSError):
        return None
    if here is None or not here.path:
        return None
    hand = isinstance(source, Repo) and Path(here.path).is_relative_to(cache / "by-hand")
    if not (hand or isinstance(source, Local)):
        return None
    name, kind = _name(source, cache), "by hand" if hand else "path"
    return Stored(name=name, kind=kind, size=here.size_mb * MIB, path=here.path)


def with_users(
    found: Iterable[Stored], declared: Collection[Function], running: Collection[str], cache: Path
) -> list[Stored]:
    """Return stored weights with the functions that use them. Touches no file."""
    wanted = _wanted(declared)
    return [_with_users(s, wanted, running, cache) for s in found]


def remove(cache: Path, stock: Collection[Stored], asked: Remove, fetching: Collection[str]) -> Removed:
    """Remove what was asked for, or say what would go. `fetching` are the sources being fetched now."""
    removed, kept = [], {}
    named = set(asked.names)
    for stored in stock:
        hit = stored.name in named or bool(named.intersection(stored.functions))
        named.discard(stored.name)
        named.difference_update(stored.functions)
        idle = asked.unused and not stored.functions and stored.kind in OURS
        if not (hit or idle):
            continue
        if why := _why_it_stays(stored, fetching):
            kept[stored.name] = why
            continue
        if not asked.dry_run:
            _take_away(cache, stored)
        removed.append(stored)
    kept.update((name, "there are no such weights on this host") for name in sorted(named))
    return Removed(removed=tuple(removed), kept=kept)


def _why_it_stays(stored: Stored, fetching: Collection[str]) -> str:
    if stored.kind not in OURS:
        return f"cortex did not put {stored.path} there and does not remove it"
    if stored.in_use:
        return "an instance runs from it: `cortex fn cool` first"
    if stored.kind != "demo" and _repo(stored.name) in {_repo(s) for s in fetching}:
        return f"{_repo(stored.name)} is being fetched: `cortex jobs cancel` first"
    return ""


def _take_away(cache: Path, stored: Stored) -> None:
    if stored.kind == "demo":
        _inside(Path(stored.path), cache / "demo").unlink(missing_ok=True)
        return
    folder = hub_cache(cache) / f"models--{_repo(stored.name).replace('/', '--')}"
    if stored.kind == "partial":
        for partial in (_inside(folder, hub_cache(cache)) / "blobs").glob("*.incomplete"):
            partial.unlink(missing_ok=True)
    for path, known in _manifests(cache):
        if stored.kind == "hub" and str(known.source) == stored.name:
            path.unlink(missing_ok=True)
    if (folder / OURS_MARK).exists():  # else another tool of HuggingFace's keeps it
        _sweep(_inside(folder, hub_cache(cache)), _pointers(cache, folder))


def _sweep(folder: Path, keep: set[Path]) -> None:
    """Remove what no manifest names from a repository's folder: pointers, blobs, and the folder if nothing stays."""
    if not keep and not any((folder / "blobs").glob("*.incomplete")):
        shutil.rmtree(folder, ignore_errors=True)
        return
    used = {pointer.resolve() for pointer in keep}
    for pointer in sorted((folder / "snapshots").rglob("*"), reverse=True):
        if pointer.is_dir() and not pointer.is_symlink():
            with contextlib.suppress(OSError):  # it is not empty
                pointer.rmdir()
        elif pointer not in keep:
            pointer.unlink(missing_ok=True)
    for blob in (folder / "blobs").iterdir():
        if blob.suffix != ".incomplete" and blob.resolve() not in used:
            blob.unlink(missing_ok=True)


def _inside(path: Path, root: Path) -> Path:
    """Return a path that is certainly below a folder of ours, whatever a manifest or a link says."""
    if root.resolve() not in path.resolve().parents:
        raise PermissionError(f"{path} is not below {root}")
    return path


def _manifests(cache: Path) -> list[tuple[Path, Manifest]]:
    paths = sorted((cache / "weights").glob("*.json"))
    return [(p, known) for p in paths if (known := manifest(p)) is not None]


def _snapshot(cache: Path, known: Manifest) -> Path:
    return hub_cache(cache) / f"models--{known.source.repo.replace('/', '--')}" / "snapshots" / known.commit


def _pointers(cache: Path, folder: Path) -> set[Path]:
    """What the manifests name in a repository's folder."""
    named = (_snapshot(cache, k) / f.path for _, k in _manifests(cache) for f in k.files)
    return {p for p in named if p.is_relative_to(folder)}


def _downloads(cache: Path) -> list[Stored]:
    return [
        Stored(
            name=str(known.source),
            kind="hub",
            size=known.size,
            path=str(_snapshot(cache, known) / known.entry),
            commit=known.commit,
            at=known.at,
        )
        for _, known in _manifests(cache)
    ]


def _demos(cache: Path) -> list[Stored]:
    return [
        Stored(name=f"demo:{p.stem}", kind="demo", size=p.stat().st_size, path=str(p), at=p.stat().st_mtime)
        for p in sorted((cache / "demo").glob("*.gguf"))
    ]


def _left_over(cache: Path) -> list[Stored]:
    """What fetches that never came to their end have left."""
    found = []
    for folder in sorted(hub_cache(cache).glob("models--*")):
        whole = _pointers(cache, folder)
        blobs = [b for b in (folder / "blobs").glob("*") if not whole or b.suffix == ".incomplete"]
        if blobs and (folder / OURS_MARK).exists():
            size, at = sum(b.stat().st_size for b in blobs), max(b.stat().st_mtime for b in blobs)
            repo = folder.name.removeprefix("models--").replace("--", "/", 1)
            found.append(Stored(name=repo, kind="partial", size=size, path=str(folder), at=at))
    return found


def _wanted(declared: Iterable[Function]) -> list[tuple[Function, Source]]:
    found = []
    for function in declared:
        with contextlib.suppress(BadSource):
            found.append((function, source_of(function)))
    return found


def _with_users(
    stored: Stored, wanted: Iterable[tuple[Function, Source]], running: Collection[str], cache: Path
) -> Stored:
    def same(source: Source) -> bool:
        if stored.kind == "partial":
            return isinstance(source, Repo) and source.repo == stored.name
        return _name(source, cache) == stored.name

    return replace(stored, functions=tuple(f.id for f, s in wanted if same(s)), in_use=stored.path in running)


def _name(source: Source, cache: Path) -> str:
    match source:
        case Local():
            return source.path
        case Demo():
            return f"demo:{demo_path(source, cache).stem}"
        case _:
            return str(source)


def _repo(name: str) -> str:
    return name.partition("@")[0].partition(":")[0]
