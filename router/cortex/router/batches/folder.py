"""The folder of files and batches, the only place where they are stored: a loss of Redis loses no line.

    lock                              held by the one batch worker
    uploads/NAME                      files that are being received
    open/KEY~BATCH                    empty: this batch has not ended
    keys/KEY/FILE.json, FILE.jsonl    a file: its value and its content
    keys/KEY/BATCH.json               a batch
    keys/KEY/BATCH/input.jsonl        its input: a hard link, so that the file may be deleted meanwhile
    keys/KEY/BATCH/results.jsonl, errors.jsonl    its results so far, which become files when it ends
    keys/KEY/BATCH/cancel             empty: its cancellation was requested

Files contain prompts, so only this user can read them. Ids are generated here, and an id or key from a request is
validated before it becomes a path. Values are written to a draft, synced and renamed, so a reader never sees half of
one. Every call may block and may raise OSError: call from threads.

The disk may damage a value while the contents are whole. Readers then get what the rest of the folder says of it, and
only `file()` and `batch()` raise Damaged.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from msgspec.structs import replace

from cortex.platform.settings import Gateway
from cortex.router.batches.batch import WINDOW_S, Batch, Counts, Status, StoredFile, lost_batch, lost_file
from cortex.router.batches.results import ERRORS, RESULTS

T = TypeVar("T")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE = re.compile(r"file-[0-9a-f]{24}")
_BATCH = re.compile(r"(batch|msgbatch)_[0-9a-f]{24}")
BLOCK = 4096
"""What a small file takes of a disk, in bytes."""
UPLOAD_S = 24 * 3600.0
"""After this time an unfinished write is removed, as its process was killed."""
INPUT, CANCEL = "input.jsonl", "cancel"


class BadName(Exception):
    """An id or key is not of this folder's form."""


class Damaged(Exception):
    """The value of a file or batch cannot be decoded. Its name is the argument."""


def new_id(prefix: str, now: float) -> str:
    """Return a new id that sorts by time: `file-`, `batch_` or `msgbatch_` and 24 hexadecimal digits."""
    return f"{prefix}{int(now * 1000):012x}{secrets.token_hex(6)}"


class Folder:
    """One folder of files and batches. It is created by the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, gateway: Gateway) -> "Folder":
        """Return the folder of the settings."""
        return cls(Path(gateway.files_dir).expanduser())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the batch worker. Raises BlockingIOError if another process has it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether a batch worker runs, of this router or another one."""
        try:
            with self.lock():
                return False
        except BlockingIOError:
            return True

    # Files.

    def begin_upload(self) -> tuple[Path, BinaryIO]:
        """Return a new private file for the content of an upload."""
        path = self._folder("uploads") / secrets.token_hex(12)
        return path, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def add_file(self, file: StoredFile, content: Path) -> None:
        """Store a file whose content has been received."""
        folder = self._folder("keys", _key(file.key))
        stored = content.replace(folder / f"{_file(file.id)}.jsonl")
        try:
            self._write(folder / f"{file.id}.json", file)
        except OSError:
            stored.unlink(missing_ok=True)
            raise

    def file(self, key: str, id: str) -> StoredFile | None:
        """Return a file of a key, or None. Raises Damaged."""
        return self._read(self._of(key) / f"{_file(id)}.json", StoredFile)

    def known_file(self, key: str, id: str) -> StoredFile | None:
        """Return a file of a key, or None; of one whose value is damaged, what is known."""
        try:
            return self.file(key, id)
        except Damaged:
            return lost_file(id, key, _size(self.content(key, id)))

    def files(self, key: str) -> Iterator[StoredFile]:
        """Yield the files of a key, the newest first."""
        for path in self._paths(key, _FILE):
            if (file := self.known_file(key, path.stem)) is not None:
                yield file

    def content(self, key: str, id: str) -> Path:
        """Return the path of a file's content."""
        return self._of(key) / f"{_file(id)}.jsonl"

    def remove_file(self, key: str, id: str) -> bool:
        """Remove a file; False if there is none."""
        self.content(key, id).unlink(missing_ok=True)
        return _unlinked(self._of(key) / f"{_file(id)}.json")

    def size_of(self, key: str) -> int:
        """Return how many bytes a key takes: its files, its batches, and what open batches read and write. A file
        counts as `BLOCK` at least, so that the number of files is limited too."""
        sizes: dict[int, int] = {}
        for path, _, names in os.walk(self._of(key)):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    stat = os.lstat(os.path.join(path, name))  # noqa: PTH118
                    sizes[stat.st_ino] = max(stat.st_size, BLOCK)  # an open batch's input may be a link to a file
        return sum(sizes.values())

    # Batches.

    def add_batch(self, batch: Batch, content: Path) -> None:
        """Store a new batch, whose lines are in the file `content`, and mark it as open."""
        folder = self._folder("keys", _key(batch.key), _batch(batch.id))
        try:
            os.link(content, folder / INPUT)
            self.write_batch(batch)
            (self._folder("open") / f"{batch.key}~{batch.id}").touch(0o600)
        except OSError:
            self.remove_batch(batch)
            raise

    def write_batch(self, batch: Batch) -> None:
        """Replace a batch's value."""
        self._write(self._of(batch.key) / f"{_batch(batch.id)}.json", batch)

    def batch(self, key: str, id: str) -> Batch | None:
        """Return a batch of a key, or None. Raises Damaged."""
        batch = self._read(self._of(key) / f"{_batch(id)}.json", Batch)
        return batch and self._cancelling(batch)

    def known_batch(self, key: str, id: str) -> Batch | None:
        """Return a batch of a key, or None; of one whose value is damaged, what is known: it failed, unless the batch
        worker has yet to end it."""
        try:
            return self.batch(key, id)
        except Damaged:
            with contextlib.suppress(FileNotFoundError):  # it has just been removed
                return self._lost(key, id)
            return None

    def batches(self, key: str) -> Iterator[Batch]:
        """Yield the batches of a key, the newest first."""
        for path in self._paths(key, _BATCH):
            if (batch := self.known_batch(key, path.stem)) is not None:
                yield batch

    def open_batches(self) -> list[tuple[str, str]]:
        """Return the keys and ids of the batches that have not ended, the oldest first."""
        with contextlib.suppress(FileNotFoundError):
            names = [name.partition("~") for name in os.listdir(self.path / "open")]  # noqa: PTH208
            names.sort(key=lambda parts: parts[2][-24:])  # by the time in the id
            return [(key, id) for key, _, id in names if _KEY.fullmatch(key) and _BATCH.fullmatch(id)]
        return []

    def work_folder(self, batch: Batch) -> Path:
        """Return the folder with a batch's input and results so far."""
        return self._of(batch.key) / _batch(batch.id)

    def request_cancel(self, batch: Batch) -> None:
        """Ask the batch worker to cancel a batch."""
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            (self.work_folder(batch) / CANCEL).touch(0o600)

    def is_cancelled(self, key: str, id: str) -> bool:
        """Whether the cancellation of an open batch was requested."""
        return (self._of(key) / _batch(id) / CANCEL).exists()

    def cancel_requested_at(self, batch: Batch) -> float:
        """Return when the cancellation of a batch was requested; 0: it was not."""
        with contextlib.suppress(FileNotFoundError):
            return (self.work_folder(batch) / CANCEL).stat().st_mtime
        return 0.0

    def end(self, batch: Batch) -> None:
        """Turn a batch's results into files and close it. May be repeated after a kill in the middle."""
        folder, removed_at = self.work_folder(batch), batch.removed_at
        for name, id, there in (
            (RESULTS, batch.output_file, batch.has_output),
            (ERRORS, batch.error_file, batch.has_errors),
        ):
            if there and (folder / name).exists():
                (folder / name).rename(self.content(batch.key, id))
            content = self.content(batch.key, id)
            if there and content.exists():
                file = StoredFile(
                    id=id,
                    key=batch.key,
                    name=f"{batch.id}_{name}",
                    purpose="batch_output",
                    size=content.stat().st_size,
                    created=batch.ended,
                    expires=removed_at,
                )
                self._write(self._of(batch.key) / f"{id}.json", file)
        source: StoredFile | None = None
        with contextlib.suppress(Damaged):  # a damaged input is removed with its batch, and ends nothing else
            source = self.file(batch.key, batch.input_file) if _FILE.fullmatch(batch.input_file) else None
        if source is not None:
            self._write(self._of(batch.key) / f"{source.id}.json", replace(source, expires=removed_at))
        self.write_batch(batch)
        self.close(batch.key, batch.id)

    def close(self, key: str, id: str) -> None:
        """Remove the marker and the work folder of a batch that has ended."""
        self._clear(self._of(key) / _batch(id))
        (self.path / "open" / f"{key}~{id}").unlink(missing_ok=True)

    def remove_batch(self, batch: Batch) -> None:
        """Remove a batch that has ended, with its results."""
        for id in filter(None, (batch.output_file, batch.error_file)):
            self.remove_file(batch.key, id)
        self._clear(self.work_folder(batch))
        (self._of(batch.key) / f"{_batch(batch.id)}.json").unlink(missing_ok=True)

    # All keys.

    def owners(self) -> list[str]:
        """Return the ids of keys that have files or batches."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(n for n in os.listdir(self.path / "keys") if _KEY.fullmatch(n))  # noqa: PTH208
        return []

    def newest(self, most: int, after: str = "") -> tuple[Batch, ...]:
        """Return the newest batches of all keys, or the next ones after the batch with the id `after`."""
        paths = [path for key in self.owners() for path in self._paths(key, _BATCH)]
        paths.sort(key=_by_time, reverse=True)
        older = (p for p in paths if not after or _by_time(p) < (after[-24:], after))
        batches = (self.known_batch(p.parent.name, p.stem) for p in older)
        return tuple(itertools.islice((b for b in batches if b is not None), most))

    def find(self, id: str) -> Batch | None:
        """Return a batch of any key, or None; of one whose value is damaged, what is known."""
        for key in self.owners():
            if (batch := self.known_batch(key, id)) is not None:
                return batch
        return None

    def sweep(self, now: float, ttl_s: float) -> int:
        """Remove expired files and batches; return their number. The end of a batch whose value is damaged is unknown:
        it is removed when any batch of its age would be."""
        open_names = set(self.open_batches())
        running: list[Batch] = []
        for names in open_names:
            with contextlib.suppress(Damaged):  # the batch worker ends it
                running += [b for b in (self.batch(*names),) if b is not None]
        in_use = {id for b in running for id in (b.input_file, b.output_file, b.error_file)}
        number = 0
        for key in self.owners():
            for batch in list(self._values(key, _BATCH, Batch)):
                # A batch whose creation was interrupted has an open status, and is not among the open ones.
                removed_at = batch.expires if batch.status.is_open else batch.removed_at
                if (key, batch.id) not in open_names and removed_at <= now:
                    self.remove_batch(batch)
                    number += 1
            for file in list(self._values(key, _FILE, StoredFile)):
                if file.expires <= now and file.id not in in_use:
                    number += self.remove_file(key, file.id)
            for path in self._damaged(key):
                if (key, path.stem) not in open_names and path.stat().st_mtime <= now - WINDOW_S - ttl_s:
                    number += _unlinked(path)  # the rest of it is then partial
            self._remove_partial(self._of(key), now, in_use | {id for _, id in open_names})
        self._remove_partial(self.path / "uploads", now, set())
        return number

    def _remove_partial(self, folder: Path, now: float, in_use: set[str]) -> None:
        """Remove what interrupted writes left in a folder: uploads, drafts, and contents and work folders whose value
        was never written."""
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                is_whole = path.suffix == ".json" or path.with_suffix(".json").exists()
                if entry.name[:1] != "." and (is_whole or path.stem in in_use):
                    continue
                if entry.stat().st_mtime >= now - UPLOAD_S:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    self._clear(path)
                else:
                    path.unlink(missing_ok=True)

    def _cancelling(self, batch: Batch) -> Batch:
        """Return a batch as cancelling if that was requested and the batch worker has not seen it yet."""
        if not batch.status.is_open or batch.cancelled_at:
            return batch
        at = self.cancel_requested_at(batch)
        return replace(batch, status=Status.CANCELLING, cancelled_at=at) if at else batch

    def _lost(self, key: str, id: str) -> Batch:
        """Return what is known of a batch whose value is damaged. Its results are known by their files' names."""
        if (self.path / "open" / f"{key}~{id}").exists():
            return self._cancelling(lost_batch(id, key, "", ""))
        results = {file.name.removeprefix(f"{id}_"): file.id for file in self._values(key, _FILE, StoredFile)}
        batch = lost_batch(id, key, results.get(RESULTS, ""), results.get(ERRORS, ""))
        succeeded, failed = (
            _lines(self.content(key, file)) if file else 0 for file in (batch.output_file, batch.error_file)
        )
        counts = Counts(total=succeeded + failed, succeeded=succeeded, failed=failed)
        ended = (self._of(key) / f"{id}.json").stat().st_mtime
        return replace(batch, status=Status.FAILED, counts=counts, ended=ended)

    def _of(self, key: str) -> Path:
        return self.path / "keys" / _key(key)

    def _folder(self, *names: str) -> Path:
        folder = self.path
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _paths(self, key: str, form: re.Pattern[str]) -> list[Path]:
        """Return the paths of a key's values with ids of a form, the newest first."""
        paths: list[Path] = []
        with contextlib.suppress(FileNotFoundError):
            paths = [self._of(key) / name for name in os.listdir(self._of(key))]  # noqa: PTH208
        paths = [path for path in paths if path.suffix == ".json" and form.fullmatch(path.stem)]
        return sorted(paths, key=_by_time, reverse=True)

    def _values(self, key: str, form: re.Pattern[str], kind: type[T]) -> Iterator[T]:
        """Yield those of a key's values that can be read, the newest first."""
        for path in self._paths(key, form):
            with contextlib.suppress(Damaged):
                value = self._read(path, kind)
                if value is not None:
                    yield value

    def _damaged(self, key: str) -> Iterator[Path]:
        for form, kind in ((_BATCH, Batch), (_FILE, StoredFile)):
            for path in self._paths(key, form):
                try:
                    self._read(path, kind)
                except Damaged:
                    yield path

    def _read(self, path: Path, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Damaged(path.stem) from None

    def _write(self, path: Path, value: object) -> None:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.encode(value))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _clear(self, folder: Path) -> None:
        for name in (INPUT, RESULTS, ERRORS, CANCEL):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def offsets(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their offsets. A line of more than `longest` bytes is cut to `longest` + 1."""
    at = 0
    with path.open("rb") as file:
        while line := file.readline(longest + 1):
            size = len(line)
            while not line.endswith(b"\n") and (rest := file.readline(1 << 20)):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield at, line
            at += size


def is_damage(error: OSError) -> bool:
    """Whether a read failed because a file is damaged or gone, so that it fails again."""
    return error.errno in (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENOENT)


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk or this user's quota of it is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _key(key: str) -> str:
    return _valid(_KEY, key)


def _file(id: str) -> str:
    return _valid(_FILE, id)


def _batch(id: str) -> str:
    return _valid(_BATCH, id)


def _valid(form: re.Pattern[str], name: str) -> str:
    if not form.fullmatch(name):
        raise BadName(name[:100])
    return name


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _lines(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return sum(1 for _ in file)
    return 0


def _by_time(path: Path) -> tuple[str, str]:
    return path.stem[-24:], path.stem


def _unlinked(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
