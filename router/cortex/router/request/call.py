"""A request as its dialect reads it: what is sent to a worker, and how the answer is translated for the client."""

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.stream import Stream
from cortex.router.request.context_window import Settle
from cortex.router.request.upload import OutgoingForm


class Reply(Protocol):
    """Translates a worker's whole answer into the client's dialect. Raises BadAnswer."""

    def plain(self, body: bytes) -> Plain: ...


class MediaReply(Protocol):
    """Passes on a worker's answer by its content type; None: it is JSON, and read as a whole."""

    def stream(self, content_type: str) -> Stream | None: ...


class StreamReply(Reply, Protocol):
    """Translates a worker's stream too."""

    def stream(self, request_id: str | None = None) -> Stream: ...


class Call(Struct, frozen=True, kw_only=True):
    """A parsed request: the worker's path, the body to send, and the translation of the answer. Without a path the
    request is over as soon as an instance is ready for it."""

    dialect: Dialect
    path: str
    body: Body
    reply: Reply
    streams: StreamReply | None = None
    affinity: str | None = None
    cache_salt: str = ""
    """Whose prompts it may find in the worker's cache; empty: everyone's."""
    answers: int = 1
    """How many answers it requests."""
    dropped: str = ""
    """The value of the answer's `x-cortex-dropped` header."""
    settle: Settle | None = None
    """Fits the request to the chosen instance, if it may not fit."""
    fitted: Callable[[int | None, int | None], Reply] | None = None
    """Returns the reply for the output limit that the worker gets and the tokens of the prompt."""
    cuts: tuple[str, ...] = ()
    """Stop strings that cortex finds itself."""
    form: OutgoingForm | None = None
    """A form to send in place of the body."""
    media: MediaReply | None = None
    """What passes on an answer that is not JSON."""
    keep_s: float | None = None
    """How long its instance may stay idle afterwards; None: as long as its function says."""
    limit_field: str = "max_tokens"
    """The client's name for its output limit."""
