"""Where a function's weights are on this host, and how they get here.

`find()` is a quick look, done before a start. `fetch()` is slow, retryable work and runs only in the host's job
worker (`jobs.py`).

    <cache>/demo/                    what cortex writes itself
    <cache>/hub/                     what comes from the hub, as HuggingFace's own tools keep it
    <cache>/weights/<key>.json       what a finished download consists of
    <cache>/by-hand/<org>/<name>/    what somebody put there, for hosts that reach no hub

Weights from the hub are there when their manifest is, and every file in it with its size: a download that was cut
off is never taken for a whole one. A manifest also holds a branch at its commit: what was fetched is served until it
is fetched again.
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
AT_A_TIME = 4
"""Files fetched side by side."""


class Manifest(Struct, frozen=True, kw_only=True):
    """A finished download."""

    source: Repo
    commit: str
    entry: str
    files: tuple[File, ...]
    at: float

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return sum(f.size for f in self.files)


class Stage(Struct, frozen=True):
    """How far a fetch has come, in bytes."""

    done: int
    total: int


Report = Callable[[Stage], None]


class Cancelled(Exception):
    """Another file of the same fetch failed."""


def find(function: Function, cache: Path) -> LocalWeights | None:
    """Return the weights if they are on this host, None if they can be fetched.

    Raises WeightsUnavailable when they can be neither found nor fetched, or may not be loaded.
    """
    found = _found(function, cache)
    if found is not None and found.path and not function.allow_pickle:
        load_policy.refuse_pickles(Path(found.path))
    return found


def _found(function: Function, cache: Path) -> LocalWeights | None:
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
            return _put_by_hand(source, cache) or _fetched(source, cache)


def fetch(source: Source, cache: Path, way: Hub, report: Report, *, keep_free_mb: int = 0) -> None:
    """Bring weights to this host, so that `find()` finds them. What has come before is not fetched again.

    Raises HubAway or WeightsUnavailable.
    """
    match source:
        case Demo():
            path = demo_path(source, cache)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bigram(path, demo_text(), name=source.name)
        case Repo():
            _fetch_repo(source, cache, way, report, keep_free_mb * MIB)
        case _:
            raise WeightsUnavailable("there is nothing to fetch")


def demo_path(source: Demo, cache: Path) -> Path:
    """Return where the demo model is kept."""
    return cache / "demo" / f"{slug(source.name)}.gguf"


def hub_cache(cache: Path) -> Path:
    """Return where downloads are kept, as HuggingFace's own tools keep them."""
    return cache / "hub"


def by_hand(source: Repo, cache: Path) -> Path:
    """Return where a repository's files may be put by hand."""
    at = f"@{slug(source.revision)}" if source.revision else ""
    return cache / "by-hand" / f"{source.repo}{at}"


def manifest_path(source: Repo, cache: Path) -> Path:
    """Return where it says what a download consists of."""
    return cache / "weights" / f"{source.key}.json"


def manifest(path: Path) -> Manifest | None:
    """Read a manifest; one that is missing or cannot be understood is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def _local(path: Path, function: Function) -> LocalWeights:
    if not path.exists():
        raise WeightsUnavailable(f"the weights {path} are not there")
    try:
        if path.is_dir() and function.engine is Engine.LLAMACPP:
            return _chosen(Repo(repo=str(path), quant=function.quant, gguf=True), path)
        if path.is_file():
            if missing := missing_parts([p.name for p in path.parent.iterdir()]) if "-of-" in path.name else []:
                raise WeightsUnavailable(f"the weights {path} lack {', '.join(missing)} beside them")
            parts = sorted(path.parent.glob(f"{path.name[:-19]}*{path.name[-9:]}")) if "-of-" in path.name else [path]
        else:
            parts = [f for f in path.rglob("*") if f.is_file()]
        with (parts[0] if parts else path / "no file in it").open("rb"):
            return LocalWeights(str(path), _size_mb(parts))
    except NoSuchWeights as error:
        raise WeightsUnavailable(str(error)) from None
    except OSError as error:
        raise WeightsUnavailable(f"the weights {path} cannot be read: {error}") from None


def _put_by_hand(source: Repo, cache: Path) -> LocalWeights | None:
    folder = by_hand(source, cache)
    try:
        return _chosen(source, folder) if folder.is_dir() else None
    except NoSuchWeights:
        return None  # the hub may have it


def _chosen(source: Repo, folder: Path) -> LocalWeights:
    """Choose from a folder as from a repository. Raises NoSuchWeights."""
    found = select(source, _listed(folder))
    return LocalWeights(str(folder / found.entry), -(-found.size // MIB))


def _listed(folder: Path) -> list[File]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return sorted((File(str(f.relative_to(folder)), f.stat().st_size) for f in files), key=lambda f: f.path)


def _fetched(source: Repo, cache: Path) -> LocalWeights | None:
    known = manifest(manifest_path(source, cache))
    if known is None:
        return None
    snapshot = Hub(hub_cache(cache)).pointer(source.repo, known.commit, "")
    for file in known.files:
        try:
            if (snapshot / file.path).stat().st_size != file.size:
                return None
        except OSError:
            return None
    return LocalWeights(str(snapshot / known.entry), -(-known.size // MIB))


def _fetch_repo(source: Repo, cache: Path, way: Hub, report: Report, keep_free: int) -> None:
    try:
        listing = way.listing(source.repo, source.revision)
        chosen = select(source, listing.files)
    except NoSuchWeights as error:
        raise WeightsUnavailable(str(error)) from None
    except WeightsUnavailable as error:
        if _adopted(source, cache, way):
            return
        hint = f"; without a hub, put its files into {by_hand(source, cache)}"
        if isinstance(error, HubUnavailable):
            raise HubUnavailable(f"{error}{hint}", retry_after_s=error.retry_after_s) from None
        raise WeightsUnavailable(f"{error}{hint}") from None
    _check_room(source, cache, way, listing.commit, chosen, keep_free)
    _fetch_files(source, way, listing.commit, chosen, report)
    way.note_revision(source.repo, source.revision, listing.commit)
    _write_manifest(source, cache, listing.commit, chosen)


def _fetch_files(source: Repo, way: Hub, commit: str, chosen: Selection, report: Report) -> None:
    """Fetch several files side by side; the first that fails ends the others."""
    lock, failed = Lock(), False
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        with lock:
            if failed:
                raise Cancelled
            done += more
            report(Stage(done, chosen.size))

    report(Stage(0, chosen.size))
    small_first = sorted(chosen.files, key=lambda f: f.size)  # what is forbidden or gone shows at once
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="fetch") as pool:
        fetches = [pool.submit(way.fetch, source.repo, commit, f.path, progress) for f in small_first]
        done_first, _ = wait(fetches, return_when=FIRST_EXCEPTION)
        failed = any(f.exception() for f in done_first)
        pool.shutdown(cancel_futures=failed)
    errors = [e for f in fetches if not f.cancelled() and (e := f.exception())]
    for error in sorted(errors, key=lambda e: isinstance(e, Cancelled)):
        raise error


def _check_room(source: Repo, cache: Path, way: Hub, commit: str, chosen: Selection, keep_free: int) -> None:
    """See that the disk takes what is still to come, before any of it does."""
    missing = [f for f in chosen.files if not way.pointer(source.repo, commit, f.path).exists()]
    to_come = sum(f.size for f in missing) - way.partial_bytes(source.repo)
    free = hub.free_bytes(hub_cache(cache))
    if missing and to_come + keep_free > free:
        raise WeightsUnavailable(
            f"{source} needs {-(-to_come // MIB)} MiB of disk in {hub_cache(cache)}, where {free // MIB} MiB are free"
            + (f" and {keep_free // MIB} MiB are kept so ([hub] keep_free_mb)" if keep_free else "")
            + ": `cortex weights rm --unused` makes room"
        )


def _adopted(source: Repo, cache: Path, way: Hub) -> bool:
    """Without the hub, take what HuggingFace's tools or an earlier fetch left here, when it looks whole."""
    commit = way.noted(source.repo, source.revision)
    snapshot = way.pointer(source.repo, commit, "") if commit else None
    if snapshot is None or not snapshot.is_dir():
        return False
    try:
        chosen = select(source, _listed(snapshot))
    except (NoSuchWeights, OSError):
        return False
    if not source.gguf and not source.file and not (snapshot / "config.json").is_file():
        return False
    _write_manifest(source, cache, commit, chosen)
    return True


def _write_manifest(source: Repo, cache: Path, commit: str, chosen: Selection) -> None:
    snapshot = Hub(hub_cache(cache)).pointer(source.repo, commit, "")
    # Sizes as they are here: of files without LFS the hub tells those before any conversion.
    files = tuple(File(f.path, (snapshot / f.path).stat().st_size) for f in chosen.files)
    made = Manifest(source=source, commit=commit, entry=chosen.entry, files=files, at=time.time())
    path = manifest_path(source, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(made))
    fresh.replace(path)


def _size_mb(files: Iterable[Path]) -> int:
    return -(-sum(f.stat().st_size for f in files) // MIB)
