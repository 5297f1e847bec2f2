"""Files and batches as values, and their representations in OpenAI's and Anthropic's APIs. Pure.

A batch has one writer at a time: the router that creates it, then the batch worker. Files and batches are stored in
the folder (`folder.py`), not in Redis.
"""

import enum
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

WINDOW_S = 24 * 3600.0
"""How long a batch may run; lines without a result then expire."""
ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/messages",
)
"""Paths to which lines may be sent."""
MESSAGES = "/v1/messages"


class Form(enum.StrEnum):
    """The API that created a batch, which decides the form of its results."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Status(enum.StrEnum):
    """The state of a batch. The first four are open."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether the batch worker still has work to do."""
        return self in _OPEN


_OPEN = frozenset({Status.VALIDATING, Status.IN_PROGRESS, Status.CANCELLING, Status.FINALIZING})


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file of a key. Times are Unix times, sizes bytes."""

    id: str
    key: str
    """The id of the key that owns it."""
    name: str
    purpose: str
    """`batch` for input, `batch_output` for results."""
    size: int
    created: float
    expires: float
    """0: unknown."""


class Problem(Struct, frozen=True, kw_only=True):
    """Why a batch failed as a whole. `line` counts from 1; 0: the batch, not one line."""

    code: str
    message: str
    line: int = 0
    param: str | None = None


class Counts(Struct, frozen=True, kw_only=True):
    """Numbers of lines by result."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def done(self) -> int:
        """Lines with a result."""
        return self.succeeded + self.failed + self.cancelled + self.expired


class Batch(Struct, frozen=True, kw_only=True):
    """A batch. Times are Unix times; 0: not yet."""

    id: str
    key: str
    """The id of the key that owns it, under whose rights and limits its lines run."""
    who: str
    """That key's name, for display."""
    form: Form
    endpoint: str
    input_file: str
    output_file: str
    error_file: str
    """The output and error files exist once the batch has ended."""
    created: float
    expires: float
    """When lines without a result expire."""
    status: Status = Status.VALIDATING
    outcome: Status | None = None
    """The status with which it ends; null until it is finalizing."""
    metadata: dict[str, str] = {}
    counts: Counts = Counts()
    began: float = 0.0
    cancelled_at: float = 0.0
    finalizing_at: float = 0.0
    ended: float = 0.0
    removed_at: float = 0.0
    """When it is removed with its files."""
    finish_at: float = 0.0
    """When it is expected to end, at the rate of the last minutes, pauses included; 0: unknown."""
    waits_for: str = ""
    """Why no line is under way, if none is."""
    problems: tuple[Problem, ...] = ()

    @property
    def has_output(self) -> bool:
        """Whether there is an output file."""
        return bool(self.ended) and (self.form is Form.ANTHROPIC or bool(self.counts.succeeded))

    @property
    def has_errors(self) -> bool:
        """Whether there is an error file."""
        return bool(self.ended) and self.form is Form.OPENAI and self.counts.done > self.counts.succeeded


def lost_file(id: str, key: str, size: int) -> StoredFile:
    """Return what is known of a file whose value is damaged."""
    return StoredFile(id=id, key=key, name=f"{id}.jsonl", purpose="batch", size=size, created=_time_of(id), expires=0.0)


def lost_batch(id: str, key: str, output_file: str, error_file: str) -> Batch:
    """Return what is known of a batch whose value is damaged: its id, which has the form and the time, and its key."""
    form = Form.ANTHROPIC if id.startswith("msgbatch_") else Form.OPENAI
    created = _time_of(id)
    return Batch(
        id=id,
        key=key,
        who=key,
        form=form,
        endpoint=MESSAGES if form is Form.ANTHROPIC else "",
        input_file="",
        output_file=output_file,
        error_file=error_file,
        created=created,
        expires=created + WINDOW_S,
        problems=(Problem(code="batch_damaged", message="the disk damaged the description of this batch"),),
    )


class BatchesAnswer(Struct, frozen=True):
    """The batches of all keys, the newest first."""

    batches: tuple[Batch, ...]


def openai_file(file: StoredFile) -> dict[str, Any]:
    """Return a file in the form of OpenAI's API."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "expires_at": int(file.expires) or None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def openai_batch(batch: Batch) -> dict[str, Any]:
    """Return a batch in the form of OpenAI's API, with two more fields: `finish_at` and `waits_for`."""
    ended: dict[str, int | None] = {
        f"{status}_at": int(batch.ended) if batch.ended and batch.status == status else None
        for status in (Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)
    }
    errors = None
    if batch.problems:
        errors = {"object": "list", "data": [{**asdict(p), "line": p.line or None} for p in batch.problems]}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file if batch.has_output else None,
        "error_file_id": batch.error_file if batch.has_errors else None,
        "created_at": int(batch.created),
        "in_progress_at": int(batch.began) or None,
        "expires_at": int(batch.expires),
        "finalizing_at": int(batch.finalizing_at) or None,
        "cancelling_at": int(batch.cancelled_at) or None,
        **ended,
        "request_counts": {
            "total": batch.counts.total,
            "completed": batch.counts.succeeded,
            "failed": batch.counts.done - batch.counts.succeeded,
        },
        "metadata": batch.metadata or None,
        "finish_at": int(batch.finish_at) or None,
        "waits_for": batch.waits_for or None,
    }


def message_batch(batch: Batch, base_url: str) -> dict[str, Any]:
    """Return a batch in the form of Anthropic's API, where counts of results are 0 until the batch has ended."""
    counts, is_over = batch.counts, bool(batch.ended)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if is_over else "canceling" if batch.cancelled_at else "in_progress",
        "request_counts": {
            "processing": 0 if is_over else counts.total,
            "succeeded": counts.succeeded if is_over else 0,
            "errored": counts.failed if is_over else 0,
            "canceled": counts.cancelled if is_over else 0,
            "expired": counts.expired if is_over else 0,
        },
        "created_at": _instant(batch.created),
        "expires_at": _instant(batch.expires),
        "ended_at": _instant(batch.ended),
        "cancel_initiated_at": _instant(batch.cancelled_at),
        "archived_at": None,
        "results_url": f"{base_url}/v1/messages/batches/{batch.id}/results" if is_over else None,
    }


def _time_of(id: str) -> float:
    """Return the time in the id of a file or batch."""
    return int(id[-24:-12], 16) / 1000


def _instant(at: float) -> str | None:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}" if at else None
