"""Inventory of a host's weights: lists them with their users, and removes unused ones.

Only cortex's own files are removed: downloads, the demo model and unfinished downloads. Files that an operator put in
place, by hand or as a path, are listed only. Weights of a running instance or a running fetch are never removed.
"""

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msgspec.structs import replace

from cortex.functions.sources import BadSource, Demo, Local, Repo, Source, source_of
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Remove, Removed, Stored
from cortex.platform.weights import compiled
from cortex.platform.weights.hub import OWNER_MARK
from cortex.platform.weights.origins import Origins
from cortex.platform.weights.store import MIB, Manifest, WeightsUnavailable, demo_path, find, hub_cache, manifest

UNUSED = ("hub", "demo", "partial")
"""Kinds that are removed when no function uses them."""
REMOVABLE = (*UNUSED, compiled.KIND)
"""Kinds that may be removed."""


def inventory(cache: Path, declared: Collection[Function], running: Collection[str]) -> list[Stored]:
    """Return all weights on this host. `running` are the weight paths of running instances."""
    stored = {s.name: s for f in declared if (s := operator_weights(f, cache)) is not None}
    return with_users([*in_cache(cache), *stored.values()], declared, running, cache)


def in_cache(cache: Path) -> list[Stored]:
    """Return the weights that cortex wrote to its cache, and the code that engines compiled there."""
    return [*_downloads(cache), *_demos(cache), *_partial_downloads(cache), *compiled.list_caches(cache)]


def operator_weights(function: Function, cache: Path) -> Stored | None:
    """Return a function's weights if an operator put them in place."""
    try:
        source, local = source_of(function), find(function, cache)
    except (BadSource, WeightsUnavailable, OSError):
        return None
    if local is None or not local.path:
        return None
    by_hand = isinstance(source, Repo) and Path(local.path).is_relative_to(cache / "by-hand")
    if not (by_hand or isinstance(source, Local)):
        return None
    name, kind = _name(source, cache), "by hand" if by_hand else "path"
    return Stored(name=name, kind=kind, size=local.size_mb * MIB, path=local.path)


def with_users(
    stored: Iterable[Stored], declared: Collection[Function], running: Collection[str], cache: Path
) -> list[Stored]:
    """Return stored weights with the functions that use them. Touches no file."""
    sources = _sources(declared)
    return [_with_users(s, sources, running, cache) for s in stored]


def remove(cache: Path, stock: Collection[Stored], request: Remove, fetching: Collection[str]) -> Removed:
    """Remove the requested weights; with `dry_run`, only list them. `fetching` are the sources of running fetches."""
    removed, refusals = [], {}
    names = set(request.names)
    for stored in stock:
        matches = stored.name in names or bool(names.intersection(stored.functions))
        names.discard(stored.name)
        names.difference_update(stored.functions)
        unused = request.unused and not stored.functions and stored.kind in UNUSED
        if not (matches or unused):
            continue
        if reason := _refusal(stored, fetching):
            refusals[stored.name] = reason
            continue
        if not request.dry_run:
            _delete(cache, stored)
        removed.append(stored)
    refusals.update((name, "this host has no weights of this name") for name in sorted(names))
    return Removed(removed=tuple(removed), refusals=refusals)


def _refusal(stored: Stored, fetching: Collection[str]) -> str:
    if stored.kind not in REMOVABLE:
        return f"cortex did not put {stored.path} there and does not remove it"
    if stored.in_use:
        return "an instance runs from it: `cortex fn cool` first"
    if stored.kind not in ("demo", compiled.KIND) and _repo(stored.name) in {_repo(s) for s in fetching}:
        return f"{_repo(stored.name)} is being fetched: `cortex jobs cancel` first"
    return ""


def _delete(cache: Path, stored: Stored) -> None:
    if stored.kind == compiled.KIND:
        compiled.remove(cache, stored)
        return
    if stored.kind == "demo":
        _inside(Path(stored.path), cache / "demo").unlink(missing_ok=True)
        return
    folder = hub_cache(cache) / f"models--{_repo(stored.name).replace('/', '--')}"
    if stored.kind == "partial":
        for partial in (_inside(folder, hub_cache(cache)) / "blobs").glob("*.incomplete"):
            partial.unlink(missing_ok=True)
    for path, manifest_read in _manifests(cache):
        if stored.kind == "hub" and str(manifest_read.source) == stored.name:
            path.unlink(missing_ok=True)
    if (folder / OWNER_MARK).exists():  # else the folder belongs to another HuggingFace tool
        before = {b.name for b in (folder / "blobs").glob("*")}
        _sweep(_inside(folder, hub_cache(cache)), _pointers(cache, folder))
        for etag in before - {b.name for b in (folder / "blobs").glob("*")}:
            Origins(cache).forget(etag.removesuffix(".incomplete"))


def _sweep(folder: Path, keep: set[Path]) -> None:
    """Remove pointers and blobs that no manifest lists, and the folder when it is empty."""
    if not keep and not any((folder / "blobs").glob("*.incomplete")):
        shutil.rmtree(folder, ignore_errors=True)
        return
    used = {pointer.resolve() for pointer in keep}
    for pointer in sorted((folder / "snapshots").rglob("*"), reverse=True):
        if pointer.is_dir() and not pointer.is_symlink():
            with contextlib.suppress(OSError):  # not empty
                pointer.rmdir()
        elif pointer not in keep:
            pointer.unlink(missing_ok=True)
    for blob in (folder / "blobs").iterdir():
        if blob.suffix != ".incomplete" and blob.resolve() not in used:
            blob.unlink(missing_ok=True)


def _inside(path: Path, root: Path) -> Path:
    """Return `path`. Raises PermissionError if it resolves to a place outside `root`."""
    if root.resolve() not in path.resolve().parents:
        raise PermissionError(f"{path} is not below {root}")
    return path


def _manifests(cache: Path) -> list[tuple[Path, Manifest]]:
    paths = sorted((cache / "weights").glob("*.json"))
    return [(p, manifest_read) for p in paths if (manifest_read := manifest(p)) is not None]


def _snapshot(cache: Path, manifest_read: Manifest) -> Path:
    return (
        hub_cache(cache)
        / f"models--{manifest_read.source.repo.replace('/', '--')}"
        / "snapshots"
        / manifest_read.commit
    )


def _pointers(cache: Path, folder: Path) -> set[Path]:
    """Return the files in a repository's folder that manifests list."""
    named = (_snapshot(cache, k) / f.path for _, k in _manifests(cache) for f in k.files)
    return {p for p in named if p.is_relative_to(folder)}


def pointers(cache: Path) -> Iterator[Path]:
    """Yield the files of finished downloads: links to blobs, named by their etags."""
    for _, finished in _manifests(cache):
        yield from (_snapshot(cache, finished) / f.path for f in finished.files)


def _origins(cache: Path, finished: Manifest) -> dict[str, int]:
    """Return the bytes of a download from each host and the hub."""
    notes, count = Origins(cache), dict[str, int]()
    for file in finished.files:
        etag = (_snapshot(cache, finished) / file.path).resolve().name
        for host, size in notes.bytes_of(etag, file.size).items():
            count[host] = count.get(host, 0) + size
    return count


def _downloads(cache: Path) -> list[Stored]:
    return [
        Stored(
            name=str(manifest_read.source),
            kind="hub",
            size=manifest_read.size,
            path=str(_snapshot(cache, manifest_read) / manifest_read.entry),
            commit=manifest_read.commit,
            at=manifest_read.at,
            origins=_origins(cache, manifest_read),
        )
        for _, manifest_read in _manifests(cache)
    ]


def _demos(cache: Path) -> list[Stored]:
    return [
        Stored(name=f"demo:{p.stem}", kind="demo", size=p.stat().st_size, path=str(p), at=p.stat().st_mtime)
        for p in sorted((cache / "demo").glob("*.gguf"))
    ]


def _partial_downloads(cache: Path) -> list[Stored]:
    """Return unfinished downloads."""
    stored = []
    for folder in sorted(hub_cache(cache).glob("models--*")):
        pointers = _pointers(cache, folder)
        blobs = [b for b in (folder / "blobs").glob("*") if not pointers or b.suffix == ".incomplete"]
        if blobs and (folder / OWNER_MARK).exists():
            size, at = sum(b.stat().st_size for b in blobs), max(b.stat().st_mtime for b in blobs)
            repo = folder.name.removeprefix("models--").replace("--", "/", 1)
            stored.append(Stored(name=repo, kind="partial", size=size, path=str(folder), at=at))
    return stored


def _sources(declared: Iterable[Function]) -> list[tuple[Function, Source]]:
    pairs = []
    for function in declared:
        with contextlib.suppress(BadSource):
            pairs.append((function, source_of(function)))
    return pairs


def _with_users(
    stored: Stored, sources: Iterable[tuple[Function, Source]], running: Collection[str], cache: Path
) -> Stored:
    def same(source: Source) -> bool:
        if stored.kind == "partial":
            return isinstance(source, Repo) and source.repo == stored.name
        return _name(source, cache) == stored.name

    return replace(stored, functions=tuple(f.id for f, s in sources if same(s)), in_use=stored.path in running)


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
