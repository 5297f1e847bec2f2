"""Calls of the folder from a router's event loop: on their own threads, with a timeout, and request errors."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from cortex.router.batches.folder import BadName, is_full
from cortex.router.errors import FileNotStored, FilesFull

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger()

THREADS = 4
TIMEOUT_S = 30.0


class FolderCalls:
    """The threads of one router worker. A disk that hangs delays requests that need files, and no others."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    async def call(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `do` returns. Raises FileNotStored for a missing file or an invalid id, or FilesFull."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, lambda: do(*args, **kwargs))
        try:
            return await asyncio.wait_for(work, TIMEOUT_S)
        except BadName as bad:
            raise FileNotStored(str(bad)) from None
        except FileNotFoundError as gone:
            raise FileNotStored(Path(gone.filename or "").stem) from None
        except TimeoutError:
            log.error("files_disk_timeout", timeout_s=TIMEOUT_S)
            raise FilesFull("the disk with the files does not answer", retry_after=30) from None
        except OSError as error:
            log.error("files_disk_error", why=str(error))
            why = "is full" if is_full(error) else f"cannot be used ({error.strerror})"
            public = f"the disk with the files {why}"
            raise FilesFull(f"{public}: {error}", public=public, retry_after=60) from None

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
