"""Where a function's weights are on this host, and how they get here.

`find()` is quick and runs before a start. `fetch()` is slow, retryable work and runs only in the host's job worker
(`jobs.py`).

    <cache>/demo/                    models that cortex writes
    <cache>/hub/                     downloads, in HuggingFace's own layout
    <cache>/weights/<key>.json       manifests of finished downloads
    <cache>/by-hand/<org>/<name>/    files from an operator, for hosts without a hub

A download is complete when its manifest exists and every file in it has its size, so a partial download is never
served. A manifest also pins a branch to its commit until the next fetch.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

import msgspec
from msgspec import Struct

from cortex.functions.names import slug
from cortex.functions.selection import File, NoSuchWeights, Selection, missing_parts, select
from cortex.functions.sources import BadSource, Demo, Local, Nothing, Repo, Source, source_of
from cortex.functions.spec import Engine, Function
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.weights import hub, load_policy
from cortex.platform.weights.demo_model import demo_text, write_bigram
from cortex.platform.weights.hub import Hub, HubUnavailable, WeightsUnavailable

__all__ = ["HubUnavailable", "WeightsUnavailable"]

MIB = 1024 * 1024
CONFIGS = ("config.json", "adapter_config.json")
"""The configuration of a model and of an adapter: one of them is in a complete folder of weights."""
AT_A_TIME = 4
"""Concurrent file downloads."""


class Manifest(Struct, frozen=True, kw_only=True):
    """A finished download."""

    source: Repo
    commit: str
    entry: str
    files: tuple[File, ...]
    at: float
    also: str = ""

    @property
    def size(self) -> int:
        """Total bytes."""
        return sum(f.size for f in self.files)


class Stage(Struct, frozen=True):
    """Progress of a fetch, in bytes."""

    done: int
    total: int


Report = Callable[[Stage], None]


class Cancelled(Exception):
    """Another file of the same fetch failed."""


def find(function: Function, cache: Path) -> LocalWeights | None:
    """Return the weights if they are on this host, None if they can be fetched.

    Raises WeightsUnavailable when they are neither here nor fetchable, or may not be loaded.
    """
    local = _find(function, cache)
    if local is not None and local.path and not function.allow_pickle:
        load_policy.refuse_pickles(Path(local.path))
    return local


def _find(function: Function, cache: Path) -> LocalWeights | None:
    try:
        source = source_of(function)
    except BadSource as error:
        raise WeightsUnavailable(str(error)) from None
    match source:
        case Nothing():
            return LocalWeights("", 0)
        case Demo():
            path = demo_path(source, cache)
            return LocalWeights(str(path), _size_mb([path])) if path.is_file() else None
        case Local():
            return _local(Path(source.path).expanduser(), function)
        case Repo():
            return _manual(source, cache) or _downloaded(source, cache)


def fetch(source: Source, cache: Path, client: Hub, report: Report, *, keep_free_mb: int = 0) -> None:
    """Download weights to this host, for `find()`. Resumes earlier downloads.

    Raises HubUnavailable or WeightsUnavailable.
    """
    match source:
        case Demo():
            path = demo_path(source, cache)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bigram(path, demo_text(), name=source.name)
        case Repo():
            _fetch_repo(source, cache, client, report, keep_free_mb * MIB)
        case _:
            raise WeightsUnavailable("there is nothing to fetch")


def demo_path(source: Demo, cache: Path) -> Path:
    """Return the path of a demo model."""
    return cache / "demo" / f"{slug(source.name)}.gguf"


def hub_cache(cache: Path) -> Path:
    """Return the folder of downloads, in HuggingFace's layout."""
    return cache / "hub"


def by_hand(source: Repo, cache: Path) -> Path:
    """Return the folder where an operator may put a repository's files."""
    at = f"@{slug(source.revision)}" if source.revision else ""
    return cache / "by-hand" / f"{source.repo}{at}"


def manifest_path(source: Repo, cache: Path) -> Path:
    """Return the path of a download's manifest."""
    return cache / "weights" / f"{source.key}.json"


def manifest(path: Path) -> Manifest | None:
    """Read a manifest; None when it is missing or invalid."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def _local(path: Path, function: Function) -> LocalWeights:
    if not path.exists():
        raise WeightsUnavailable(f"the weights {path} do not exist")
    try:
        if path.is_dir() and function.engine is Engine.LLAMACPP:
            return _select_from(Repo(repo=str(path), quant=function.quant, gguf=True), path)
        if path.is_file():
            if missing := missing_parts([p.name for p in path.parent.iterdir()]) if "-of-" in path.name else []:
                raise WeightsUnavailable(
                    f"the weights {path} are incomplete: {', '.join(missing)} missing from the folder"
                )
            parts = sorted(path.parent.glob(f"{path.name[:-19]}*{path.name[-9:]}")) if "-of-" in path.name else [path]
        else:
            parts = [f for f in path.rglob("*") if f.is_file()]
        with (parts[0] if parts else path / "no file in it").open("rb"):
            return LocalWeights(str(path), _size_mb(parts))
    except NoSuchWeights as error:
        raise WeightsUnavailable(str(error)) from None
    except OSError as error:
        raise WeightsUnavailable(f"the weights {path} cannot be read: {error}") from None


def _manual(source: Repo, cache: Path) -> LocalWeights | None:
    folder = by_hand(source, cache)
    try:
        return _select_from(source, folder) if folder.is_dir() else None
    except NoSuchWeights:
        return None  # the hub may have it


def _select_from(source: Repo, folder: Path) -> LocalWeights:
    """Select weights from a folder as from a repository. Raises NoSuchWeights."""
    selection = select(source, _files_in(folder))
    mmproj = str(folder / selection.also) if selection.also else ""
    return LocalWeights(str(folder / selection.entry), -(-selection.size // MIB), mmproj=mmproj)


def _files_in(folder: Path) -> list[File]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return sorted((File(str(f.relative_to(folder)), f.stat().st_size) for f in files), key=lambda f: f.path)


def _downloaded(source: Repo, cache: Path) -> LocalWeights | None:
    downloaded = manifest(manifest_path(source, cache))
    if downloaded is None:
        return None
    snapshot = Hub(hub_cache(cache)).pointer(source.repo, downloaded.commit, "")
    for file in downloaded.files:
        try:
            if (snapshot / file.path).stat().st_size != file.size:
                return None
        except OSError:
            return None
    mmproj = str(snapshot / downloaded.also) if downloaded.also else ""
    return LocalWeights(str(snapshot / downloaded.entry), -(-downloaded.size // MIB), mmproj=mmproj)


def _fetch_repo(source: Repo, cache: Path, client: Hub, report: Report, keep_free: int) -> None:
    try:
        listing = client.listing(source.repo, source.revision)
        selection = select(source, listing.files)
    except NoSuchWeights as error:
        raise WeightsUnavailable(str(error)) from None
    except WeightsUnavailable as error:
        if _adopt(source, cache, client):
            return
        hint = f"; without a hub, put its files into {by_hand(source, cache)}"
        if isinstance(error, HubUnavailable):
            raise HubUnavailable(f"{error}{hint}", retry_after_s=error.retry_after_s) from None
        raise WeightsUnavailable(f"{error}{hint}") from None
    _check_room(source, cache, client, listing.commit, selection, keep_free)
    _fetch_files(source, client, listing.commit, selection, report)
    client.note_revision(source.repo, source.revision, listing.commit)
    _write_manifest(source, cache, listing.commit, selection)


def _fetch_files(source: Repo, client: Hub, commit: str, selection: Selection, report: Report) -> None:
    """Fetch several files concurrently; the first failure ends the others."""
    lock, failed = Lock(), False
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        with lock:
            if failed:
                raise Cancelled
            done += more
            report(Stage(done, selection.size))

    report(Stage(0, selection.size))
    by_size = sorted(selection.files, key=lambda f: f.size)  # a forbidden or missing file fails early
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="fetch") as pool:
        fetches = [pool.submit(client.fetch, source.repo, commit, f.path, progress) for f in by_size]
        completed, _ = wait(fetches, return_when=FIRST_EXCEPTION)
        failed = any(f.exception() for f in completed)
        pool.shutdown(cancel_futures=failed)
    errors = [e for f in fetches if not f.cancelled() and (e := f.exception())]
    for error in sorted(errors, key=lambda e: isinstance(e, Cancelled)):
        raise error


def _check_room(source: Repo, cache: Path, client: Hub, commit: str, selection: Selection, keep_free: int) -> None:
    """Raise WeightsUnavailable when the remaining bytes do not fit the disk."""
    missing = [f for f in selection.files if not client.pointer(source.repo, commit, f.path).exists()]
    remaining = sum(f.size for f in missing) - client.partial_bytes(source.repo)
    free = hub.free_bytes(hub_cache(cache))
    if missing and remaining + keep_free > free:
        raise WeightsUnavailable(
            f"{source} needs {-(-remaining // MIB)} MiB of disk in {hub_cache(cache)}, where {free // MIB} MiB are free"
            + (f" and {keep_free // MIB} MiB stay free ([hub] keep_free_mb)" if keep_free else "")
            + ": `cortex weights rm --unused` makes room"
        )


def _adopt(source: Repo, cache: Path, client: Hub) -> bool:
    """Without the hub, use files from HuggingFace's tools or an earlier fetch if they look complete."""
    commit = client.noted_commit(source.repo, source.revision)
    snapshot = client.pointer(source.repo, commit, "") if commit else None
    if snapshot is None or not snapshot.is_dir():
        return False
    try:
        selection = select(source, _files_in(snapshot))
    except (NoSuchWeights, OSError):
        return False
    if not source.gguf and not source.file and not any((snapshot / name).is_file() for name in CONFIGS):
        return False
    _write_manifest(source, cache, commit, selection)
    return True


def _write_manifest(source: Repo, cache: Path, commit: str, selection: Selection) -> None:
    snapshot = Hub(hub_cache(cache)).pointer(source.repo, commit, "")
    # Local sizes: for files without LFS the hub reports the size before line-ending conversion.
    files = tuple(File(f.path, (snapshot / f.path).stat().st_size) for f in selection.files)
    finished = Manifest(
        source=source, commit=commit, entry=selection.entry, files=files, at=time.time(), also=selection.also
    )
    path = manifest_path(source, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(finished))
    draft.replace(path)


def _size_mb(files: Iterable[Path]) -> int:
    return -(-sum(f.stat().st_size for f in files) // MIB)
