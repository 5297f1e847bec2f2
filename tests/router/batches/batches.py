"""Batches and lines for tests."""

import contextlib
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cortex.router.batches.batch import Batch, Form, StoredFile
from cortex.router.batches.folder import Folder, new_id

CHAT = "/v1/chat/completions"
NOW = 1_000_000.0


def entry(id: str, **more: Any) -> dict[str, Any]:
    """Return a line as a client writes it."""
    return {"custom_id": id, "method": "POST", "url": CHAT, "body": {"model": "m"}, **more}


def text(*entries: dict[str, Any]) -> bytes:
    """Return lines as a file's content."""
    return b"".join(json.dumps(e).encode() + b"\n" for e in entries)


def add_batch(folder: Folder, content: bytes, key: str = "k1", created: float = NOW, **more: Any) -> Batch:
    """Add a file and a batch of its lines."""
    path, file = folder.begin_upload()
    with file:
        file.write(content)
    stored = StoredFile(
        id=new_id("file-", created),
        key=key,
        name="in",
        purpose="batch",
        size=len(content),
        created=created,
        expires=2e9,
    )
    folder.add_file(stored, path)
    batch = replace(value(key, created), input_file=stored.id, **more)
    folder.add_batch(batch, folder.content(key, stored.id))
    return batch


def value(key: str = "k1", created: float = NOW, form: Form = Form.OPENAI) -> Batch:
    """Return a new batch that never expires."""
    return Batch(
        id=new_id("batch_", created),
        key=key,
        who=key,
        form=form,
        endpoint=CHAT,
        input_file=new_id("file-", created),
        output_file=new_id("file-", created),
        error_file=new_id("file-", created),
        created=created,
        expires=2e9,
    )


def ids(path: Path) -> list[str]:
    """Return the ids of the results in a file."""
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: a write then stops in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
