"""The HuggingFace hub, or a mirror of it: what a repository holds, and one file of it brought here.

Files go where HuggingFace's own tools keep them (`models--org--name/blobs|snapshots|refs`), so that those tools see
them and files they fetched are not fetched again. The library does the talking: its metadata, its locks, its
resuming within a connection. Two things are done here, because it does not do them:

- A download that was cut off, by whatever, goes on where it stopped: also after `kill -9` (the library begins
  anew). What has come stands in `blobs/<etag>.incomplete`, and becomes `blobs/<etag>` only when its size and, where
  the hub tells it, its SHA-256 are right.
- Transfers are plain HTTP, so that mirrors, progress and resuming are the same everywhere. Only a file too large for
  the hub's HTTP is left to the library and its Xet transfer.

Every error is one of two: it may pass (`HubAway`), or somebody has to do something (`WeightsUnavailable`). Neither
says a token or the query of a signed address.
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

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

MIB = 1024 * 1024
CHUNK = MIB // 2
"""What a killed download loses of each file at most. The library's own measure is 10 MB, and so coarse a progress."""
HEAD_S = 10.0
OURS_MARK = ".cortex"
"""In the folder of a repository that cortex began: only such are ever removed."""
Progress = Callable[[int], None]
"""Told how many more bytes are here; fewer, when some have to come again."""


class WeightsUnavailable(Exception):
    """The weights cannot be had; the text says what to do."""


class HubUnavailable(WeightsUnavailable):
    """The hub cannot be reached, or broke off: trying again later may do."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Listing(Struct, frozen=True):
    """All files of a repository, at one commit."""

    commit: str
    files: tuple[File, ...]


class Hub:
    """A way to a hub. `endpoint` "" is the one of `HF_ENDPOINT`, else HuggingFace's."""

    def __init__(self, cache: Path, *, endpoint: str = "", token: str = "") -> None:
        self._cache, self._endpoint, self._token = cache, endpoint.rstrip("/") or None, token

    def listing(self, repo: str, revision: str) -> Listing:
        """Ask what a repository holds. Raises HubUnavailable or WeightsUnavailable."""
        from huggingface_hub import HfApi

        with self._mapped(f"{repo}{f' at {revision}' if revision else ''}"):
            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            found = api.model_info(repo, revision=revision or None, files_metadata=True, timeout=30)
            files = tuple(File(s.rfilename, s.size or 0) for s in found.siblings or () if _is_inside(s.rfilename))
            if not found.sha or not _is_name(found.sha):
                raise WeightsUnavailable(f"{self._name()} does not say at which commit {repo} is: it is no hub")
            return Listing(found.sha, files)

    def fetch(self, repo: str, commit: str, path: str, progress: Progress) -> Path:
        """Bring one file here, going on with what has come before. Raises HubUnavailable or WeightsUnavailable."""
        pointer = self.pointer(repo, commit, path)
        if pointer.exists():
            progress(pointer.stat().st_size)
            return pointer
        with self._mapped(f"{path} of {repo}"):
            from huggingface_hub import constants, hf_hub_download, hf_hub_url
            from huggingface_hub.utils._fixes import WeakFileLock

            url = hf_hub_url(repo, path, revision=commit, endpoint=self._endpoint)
            told = self._told(url)
            if told.etag is None or told.size is None or not _is_name(told.etag):
                raise WeightsUnavailable(f"{urlsplit(url).netloc} does not say what {path} is: it is no hub")
            if told.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
                hf_hub_download(
                    repo,
                    path,
                    revision=commit,
                    cache_dir=self._cache,
                    endpoint=self._endpoint,
                    token=self._token or False,
                )
                progress(told.size)
                return pointer
            blob = self.folder(repo) / "blobs" / told.etag
            lock = self._cache / ".locks" / self.folder(repo).name / f"{told.etag}.lock"
            self._mark_ours(repo)
            for folder in (blob.parent, lock.parent, pointer.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if blob.exists():
                    progress(blob.stat().st_size)
                else:
                    self._transfer(url, told.location, blob, told.size, progress)
                _point(pointer, blob)
        return pointer

    def head(self, repo: str, commit: str, path: str, count: int) -> bytes:
        """Return the first bytes of a file. Raises HubUnavailable or WeightsUnavailable."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff

        with self._mapped(f"{path} of {repo}"):
            url = hf_hub_url(repo, path, revision=commit, endpoint=self._endpoint)
            told = self._told(url)
            headers = {**self._headers(url, told.location), "range": f"bytes=0-{count - 1}"}
            taken = bytearray()
            with http_stream_backoff("GET", told.location, headers=headers, timeout=HEAD_S) as answer:
                hf_raise_for_status(answer)
                for chunk in answer.iter_bytes():
                    taken += chunk
                    if len(taken) >= count:  # a server need not heed ranges
                        break
            return bytes(taken[:count])

    def folder(self, repo: str) -> Path:
        """Return where a repository is kept."""
        return self._cache / f"models--{repo.replace('/', '--')}"

    def pointer(self, repo: str, commit: str, path: str) -> Path:
        """Return where a file of a repository is seen at a commit."""
        return self.folder(repo) / "snapshots" / commit / path

    def note_revision(self, repo: str, revision: str, commit: str) -> None:
        """Note which commit a branch was at, as the library does."""
        ref = self.folder(repo) / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)

    def noted(self, repo: str, revision: str) -> str:
        """Return the commit that was noted for a branch, or a commit that is here itself; "" when neither is."""
        with contextlib.suppress(OSError, ValueError):
            said = (self.folder(repo) / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
            return said if _is_name(said) else ""
        return revision if _is_name(revision) and self.pointer(repo, revision, "").is_dir() else ""

    def partial_bytes(self, repo: str) -> int:
        """Return how much has come of downloads that are not finished."""
        return sum(p.stat().st_size for p in (self.folder(repo) / "blobs").glob("*.incomplete"))

    def _mark_ours(self, repo: str) -> None:
        """Note that this repository is here because of us; one that was here before is another tool's."""
        with contextlib.suppress(FileExistsError):
            self.folder(repo).mkdir(parents=True)
            (self.folder(repo) / OURS_MARK).touch()

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
            http_get(
                location,
                checked,  # type: ignore[arg-type]
                resume_size=checked.tell(),
                headers=headers,
                expected_size=size,
                tqdm_class=_Silent,
            )
            raw.flush()
            os.fsync(raw.fileno())
        if len(blob.name) == 64 and checked.sha256() != blob.name:
            progress(-size)
            partial.unlink()
            raise HubUnavailable(f"what came is not what the hub has (its SHA-256 is not {blob.name[:12]}…)")
        partial.replace(blob)

    def _told(self, url: str) -> "HfFileMetadata":
        """Ask what a file is and where its content stands."""
        from huggingface_hub import get_hf_file_metadata

        return get_hf_file_metadata(url, token=self._token or False, endpoint=self._endpoint)

    def _headers(self, url: str, location: str) -> dict[str, str]:
        from huggingface_hub.utils._headers import build_hf_headers

        headers = {**build_hf_headers(token=self._token or False), "accept-encoding": "identity"}
        if urlsplit(location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the signed address of a CDN: our token is none of its business
        return headers

    @contextlib.contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        """Say every error in our words."""
        import httpx2
        from huggingface_hub import errors

        hub = self._name()
        try:
            yield
        except errors.GatedRepoError:
            raise WeightsUnavailable(
                f"{what} is gated: accept its terms on {hub}, and give this host a token that may read it "
                f"({TOKEN_SETTING}){' in place of the one it has' if self._token else ''}"
            ) from None
        except errors.RevisionNotFoundError:
            raise WeightsUnavailable(f"{hub} has no such revision: {what}") from None
        except errors.RepositoryNotFoundError:
            hint = (
                "the token may not read it" if self._token else f"if it is private, it needs a token ({TOKEN_SETTING})"
            )
            raise WeightsUnavailable(f"{hub} has no {what}, or {hint}") from None
        except errors.EntryNotFoundError:
            raise WeightsUnavailable(f"{hub} has no {what}") from None
        except errors.OfflineModeIsEnabled:
            raise WeightsUnavailable(f"{what} is not on this host, and HF_HUB_OFFLINE forbids to fetch it") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise WeightsUnavailable(f"{hub} refuses {what} ({status}): {_token_hint(self._token)}") from None
            if status == 416:
                raise HubUnavailable(f"{hub} has less of {what} than was here") from None
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
            if error.errno is not None:  # the disk's; the library's own have none
                raise WeightsUnavailable(f"{what} cannot be written: {error.strerror}") from None
            raise HubUnavailable(f"{what} came incomplete: {clean(str(error))}") from None

    def _name(self) -> str:
        from huggingface_hub import constants

        return urlsplit(self._endpoint or constants.ENDPOINT).netloc


TOKEN_SETTING = "`[hub] token_file`, or HF_TOKEN"  # noqa: S105 (its name, not a token)


def token(file: str) -> str:
    """Return the hub's token: a file's content, else what the library finds in HF_TOKEN or its own file."""
    if file:
        try:
            return Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsUnavailable(f"the hub's token cannot be read from {file}: {error}") from None
    from huggingface_hub import get_token

    return get_token() or ""


def free_bytes(folder: Path) -> int:
    """Return how much room there is where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def clean(text: str) -> str:
    """Return a message in one line, without the queries of addresses: they may be signed. Some come cut short."""
    return re.sub(r"\?[^\s'\")]+", "", " ".join(text.split()))[:500]


class _Checked:
    """A partial file that takes what comes, tells of it, and adds up its SHA-256 as it goes."""

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
        # At once, past Python's buffer: what has come outlives this process, however it ends.
        self._raw.flush()
        self._sum.update(chunk)
        self._progress(len(chunk))
        return written

    def seek(self, to: int) -> int:
        """Only ever to the start, when the server does not go on where we stopped."""
        assert to == 0
        return self._raw.seek(0)

    def truncate(self) -> int:
        was = self._raw.seek(0, os.SEEK_END)
        self._raw.seek(0)
        self._progress(-was)
        self._sum = hashlib.sha256()
        return self._raw.truncate()

    def sha256(self) -> str:
        return self._sum.hexdigest()


class _Silent:
    """In the place of a progress bar: `_Checked` knows better what has come."""

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, _: float | None = 1) -> None: ...


def _point(pointer: Path, blob: Path) -> None:
    """Let a file of a snapshot be a blob."""
    fresh = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(blob, pointer.parent))
    fresh.replace(pointer)


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and not {"", ".", ".."}.intersection(path.split("/"))


def _is_name(etag: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]{1,200}", etag)) and not etag.startswith(".")


def _token_hint(token: str) -> str:
    return "its token may not read it" if token else f"it may need a token ({TOKEN_SETTING})"


def _seconds(said: str | None) -> float:
    return float(said) if said and said.isdigit() else 0.0
