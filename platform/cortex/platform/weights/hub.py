"""Client of the HuggingFace hub or a mirror: lists a repository and downloads single files.

A file whose SHA-256 the hub names is taken from neighbours that have it, as far as they send it, and from the hub for
the rest.

Files go into HuggingFace's own cache layout (`models--org--name/blobs|snapshots|refs`), shared with its tools. The
library supplies metadata, locks and resuming within a connection. This module adds two things:

- An interrupted download resumes, also after `kill -9` (the library starts over). The bytes so far are in
  `blobs/<etag>.incomplete`, which becomes `blobs/<etag>` once its size and, where the hub publishes it, its SHA-256
  match.
- Transfers use plain HTTP, so mirrors, progress and resuming work the same everywhere. Only a file too large for the
  hub's HTTP goes through the library's Xet transfer.

Errors are either transient (`HubUnavailable`) or need an operator (`WeightsUnavailable`). Neither contains a token or
the query of a signed address.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from msgspec import Struct

from cortex.functions.selection import File
from cortex.platform import text_files
from cortex.platform.weights.neighbours import NeighbourClient, NeighbourLost
from cortex.platform.weights.origins import HUB, Origins

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

MIB = 1024 * 1024
CHUNK = MIB // 2
"""The most that a killed download loses per file, and the progress step. The library's default is 10 MB."""
HEAD_S = 10.0
SHA256_DIGITS = 64
"""The length of an etag that is a SHA-256: those of large files. Small ones have another kind of hash."""
OWNER_MARK = ".cortex"
"""Marks a repository folder that cortex created: only those are removed."""
Progress = Callable[[int], None]
"""Called with the number of new bytes; negative when bytes must be downloaded again."""


class WeightsUnavailable(Exception):
    """The weights are not available; the text says what to do."""


class HubUnavailable(WeightsUnavailable):
    """The hub is unreachable or the connection broke: a later retry may succeed."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Listing(Struct, frozen=True):
    """All files of a repository, at one commit."""

    commit: str
    files: tuple[File, ...]


class Hub:
    """A hub client. `endpoint` "" means `HF_ENDPOINT`, else HuggingFace's."""

    def __init__(
        self, cache: Path, *, endpoint: str = "", token: str = "", neighbours: NeighbourClient | None = None
    ) -> None:
        self._cache, self._endpoint, self._token = cache, endpoint.rstrip("/") or None, token
        self._neighbours, self._origins = neighbours or NeighbourClient(()), Origins(cache.parent)

    def listing(self, repo: str, revision: str) -> Listing:
        """List a repository's files. Raises HubUnavailable or WeightsUnavailable."""
        from huggingface_hub import HfApi

        with self._map_errors(f"{repo}{f' at {revision}' if revision else ''}"):
            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            info = api.model_info(repo, revision=revision or None, files_metadata=True, timeout=30)
            files = tuple(File(s.rfilename, s.size or 0) for s in info.siblings or () if _is_inside(s.rfilename))
            if not info.sha or not _is_name(info.sha):
                raise WeightsUnavailable(f"{self._name()} sends no commit for {repo}: it is not a hub")
            return Listing(info.sha, files)

    def fetch(self, repo: str, commit: str, path: str, progress: Progress) -> Path:
        """Download one file, resuming a partial download. Raises HubUnavailable or WeightsUnavailable."""
        pointer = self.pointer(repo, commit, path)
        if pointer.exists():
            progress(pointer.stat().st_size)
            return pointer
        with self._map_errors(f"{path} of {repo}"):
            from huggingface_hub import constants, hf_hub_download, hf_hub_url
            from huggingface_hub.utils._fixes import WeakFileLock

            url = hf_hub_url(repo, path, revision=commit, endpoint=self._endpoint)
            metadata = self._metadata(url)
            if metadata.etag is None or metadata.size is None or not _is_name(metadata.etag):
                raise WeightsUnavailable(f"{urlsplit(url).netloc} sends no etag or size for {path}: it is not a hub")
            if metadata.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
                hf_hub_download(
                    repo,
                    path,
                    revision=commit,
                    cache_dir=self._cache,
                    endpoint=self._endpoint,
                    token=self._token or False,
                )
                progress(metadata.size)
                return pointer
            blob = self.folder(repo) / "blobs" / metadata.etag
            lock = self._cache / ".locks" / self.folder(repo).name / f"{metadata.etag}.lock"
            self._mark_owned(repo)
            for folder in (blob.parent, lock.parent, pointer.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if blob.exists():
                    progress(blob.stat().st_size)
                else:
                    self._transfer(url, metadata.location, blob, metadata.size, progress)
                _point(pointer, blob)
        return pointer

    def head(self, repo: str, commit: str, path: str, count: int) -> bytes:
        """Return the first bytes of a file. Raises HubUnavailable or WeightsUnavailable."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff

        with self._map_errors(f"{path} of {repo}"):
            url = hf_hub_url(repo, path, revision=commit, endpoint=self._endpoint)
            metadata = self._metadata(url)
            headers = {**self._headers(url, metadata.location), "range": f"bytes=0-{count - 1}"}
            received = bytearray()
            with http_stream_backoff("GET", metadata.location, headers=headers, timeout=HEAD_S) as answer:
                hf_raise_for_status(answer)
                for chunk in answer.iter_bytes():
                    received += chunk
                    if len(received) >= count:  # a server may ignore ranges
                        break
            return bytes(received[:count])

    def folder(self, repo: str) -> Path:
        """Return a repository's folder in the cache."""
        return self._cache / f"models--{repo.replace('/', '--')}"

    def pointer(self, repo: str, commit: str, path: str) -> Path:
        """Return the snapshot path of a file at a commit."""
        return self.folder(repo) / "snapshots" / commit / path

    def note_revision(self, repo: str, revision: str, commit: str) -> None:
        """Record the commit of a branch, as the library does."""
        ref = self.folder(repo) / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)

    def noted_commit(self, repo: str, revision: str) -> str:
        """Return the recorded commit of a branch, or `revision` if it is a local commit; else ""."""
        with contextlib.suppress(OSError, ValueError):
            commit = (self.folder(repo) / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
            return commit if _is_name(commit) else ""
        return revision if _is_name(revision) and self.pointer(repo, revision, "").is_dir() else ""

    def partial_bytes(self, repo: str) -> int:
        """Return the bytes of unfinished downloads."""
        return sum(p.stat().st_size for p in (self.folder(repo) / "blobs").glob("*.incomplete"))

    def _mark_owned(self, repo: str) -> None:
        """Mark a repository that cortex creates; an existing folder belongs to another tool."""
        with contextlib.suppress(FileExistsError):
            self.folder(repo).mkdir(parents=True)
            (self.folder(repo) / OWNER_MARK).touch()

    def _transfer(self, url: str, location: str, blob: Path, size: int, progress: Progress) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import http_get

        headers = self._headers(url, location)
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        partial = blob.with_name(f"{blob.name}.incomplete")
        with partial.open("ab+") as raw:
            if raw.tell() > size:
                raw.truncate(0)
            checked = _Checked(raw, progress)
            if hashed := len(blob.name) == SHA256_DIGITS:
                self._receive(blob.name, size, checked)
            if checked.tell() < size:
                self._origins.begin(blob.name, checked.tell(), HUB)
            http_get(  # nothing when the file is complete
                location,
                checked,  # type: ignore[arg-type]  # of a file, it needs these methods alone
                resume_size=checked.tell(),
                headers=headers,
                expected_size=size,
                tqdm_class=_Silent,
            )
            raw.flush()
            os.fsync(raw.fileno())
        if hashed and checked.sha256() != blob.name:
            progress(-size)
            partial.unlink()
            self._origins.forget(blob.name)
            self._neighbours.distrust(blob.name)
            raise HubUnavailable(f"the download is corrupt (its SHA-256 is not {blob.name[:12]}…)")
        partial.replace(blob)

    def _receive(self, digest: str, size: int, file: "_Checked") -> None:
        """Take as much of a file from neighbours as they send."""
        if file.tell() >= size:
            return
        for neighbour in self._neighbours.holders(digest, size):
            self._origins.begin(digest, file.tell(), neighbour.host)
            try:
                self._neighbours.receive(neighbour, digest, file.tell(), size, file.write)
                return
            except NeighbourLost as error:
                self._neighbours.give_up(neighbour, str(error))

    def _metadata(self, url: str) -> "HfFileMetadata":
        """Request a file's etag, size and location."""
        from huggingface_hub import get_hf_file_metadata

        return get_hf_file_metadata(url, token=self._token or False, endpoint=self._endpoint)

    def _headers(self, url: str, location: str) -> dict[str, str]:
        from huggingface_hub.utils._headers import build_hf_headers

        headers = {**build_hf_headers(token=self._token or False), "accept-encoding": "identity"}
        if urlsplit(location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # a CDN's signed address must not receive the hub token
        return headers

    @contextlib.contextmanager
    def _map_errors(self, what: str) -> Iterator[None]:
        """Map the library's errors to HubUnavailable and WeightsUnavailable."""
        import httpx2
        from huggingface_hub import errors

        hub = self._name()
        try:
            yield
        except errors.GatedRepoError:
            raise WeightsUnavailable(
                f"{what} is gated: accept its terms on {hub}, and give this host a token that may read it "
                f"({TOKEN_SETTING}){' instead of its current one' if self._token else ''}"
            ) from None
        except errors.RevisionNotFoundError:
            raise WeightsUnavailable(f"{hub} has no such revision: {what}") from None
        except errors.RepositoryNotFoundError:
            hint = (
                "the token may not read it" if self._token else f"if it is private, it needs a token ({TOKEN_SETTING})"
            )
            path = "; a path beside models.toml begins with ./"
            raise WeightsUnavailable(f"{hub} has no {what}, or {hint}{path}") from None
        except errors.EntryNotFoundError:
            raise WeightsUnavailable(f"{hub} has no {what}") from None
        except errors.OfflineModeIsEnabled:
            raise WeightsUnavailable(f"{what} is not on this host, and HF_HUB_OFFLINE forbids fetching it") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise WeightsUnavailable(f"{hub} refuses {what} ({status}): {_token_hint(self._token)}") from None
            if status == 416:
                raise HubUnavailable(f"{hub} has fewer bytes of {what} than this host") from None
            if status in (408, 429) or status >= 500:
                wait = _seconds(error.response.headers.get("retry-after"))
                raise HubUnavailable(f"{hub} answers {status} for {what}", retry_after_s=wait) from None
            raise WeightsUnavailable(f"{hub} answers {status} for {what}") from None
        except errors.HFValidationError as error:
            raise WeightsUnavailable(clean(str(error))) from None
        except httpx2.TransportError as error:
            raise HubUnavailable(
                f"{hub} cannot be reached for {what}: {clean(str(error)) or type(error).__name__}"
            ) from None
        except OSError as error:
            if error.errno is not None:  # a disk error; the library's own OSErrors have no errno
                raise WeightsUnavailable(f"{what} cannot be written: {error.strerror}") from None
            raise HubUnavailable(f"the download of {what} is incomplete: {clean(str(error))}") from None

    def _name(self) -> str:
        from huggingface_hub import constants

        return urlsplit(self._endpoint or constants.ENDPOINT).netloc


TOKEN_SETTING = "`[hub] token_file`, or HF_TOKEN"  # noqa: S105 (its name, not a token)


def token(file: str) -> str:
    """Return the hub's token: the file's content, else the library's (HF_TOKEN or its own file)."""
    if file:
        try:
            return text_files.read(Path(file).expanduser()).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsUnavailable(f"the hub's token cannot be read from {file}: {error}") from None
    from huggingface_hub import get_token

    return get_token() or ""


def free_bytes(folder: Path) -> int:
    """Return the free disk space at a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def clean(text: str) -> str:
    """Return a message as one line of at most 500 characters, without the queries of URLs, which may be signed."""
    return re.sub(r"\?[^\s'\")]+", "", " ".join(text.split()))[:500]


class _Checked:
    """A partial file that reports progress and computes its SHA-256 while it is written."""

    def __init__(self, raw: BinaryIO, progress: Progress) -> None:
        self._raw, self._progress = raw, progress
        self._sum = hashlib.sha256()
        raw.seek(0)
        while chunk := raw.read(4 * MIB):
            self._sum.update(chunk)
        self.tell = raw.tell
        progress(raw.tell())

    def write(self, chunk: bytes) -> int:
        written = self._raw.write(chunk)
        # Flush Python's buffer at once, so the bytes survive a kill of this process.
        self._raw.flush()
        self._sum.update(chunk)
        self._progress(len(chunk))
        return written

    def seek(self, to: int) -> int:
        """Seek to the start: the server does not resume."""
        assert to == 0
        return self._raw.seek(0)

    def truncate(self) -> int:
        size = self._raw.seek(0, os.SEEK_END)
        self._raw.seek(0)
        self._progress(-size)
        self._sum = hashlib.sha256()
        return self._raw.truncate()

    def sha256(self) -> str:
        return self._sum.hexdigest()


class _Silent:
    """Replaces the library's progress bar: `_Checked` reports progress."""

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, _: float | None = 1) -> None: ...


def _point(pointer: Path, blob: Path) -> None:
    """Make a snapshot's file a link to a blob, atomically."""
    link = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(blob, pointer.parent))
    link.replace(pointer)


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and not {"", ".", ".."}.intersection(path.split("/"))


def _is_name(etag: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]{1,200}", etag)) and not etag.startswith(".")


def _token_hint(token: str) -> str:
    return "its token may not read it" if token else f"it may need a token ({TOKEN_SETTING})"


def _seconds(value: str | None) -> float:
    return float(value) if value and value.isdigit() else 0.0
