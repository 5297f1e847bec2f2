"""Requests for media in JSON: speech, and images to generate. Pure."""

import msgspec

from cortex.functions.passing import Passing, passing
from cortex.router.dialects import gate
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.media import bounds
from cortex.router.dialects.media.answer import Reply

PLAIN = passing("openai", "speech")


class _Voice(msgspec.Struct):
    """A voice of the client's own."""

    id: str


class _Speech(msgspec.Struct):
    model: str
    input: str
    voice: str | _Voice | None = None
    response_format: str | None = None
    stream_format: str | None = None


class _Images(msgspec.Struct):
    model: str
    prompt: str
    n: int | None = None


class MediaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to send on with the worker's name of the model."""

    kind: Dialect
    model: str
    fields: gate.Fields
    characters: int = 0
    answers: int = 1
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> Body:
        """Return the body to send."""
        return wire.write(self.fields, model)

    @property
    def reply(self) -> Reply:
        """The conversion of the answer."""
        return Reply(self.kind, self.characters)


@wire.parser
def read_speech(body: bytes, passing: Passing = PLAIN) -> MediaRequest:
    """Parse a request to `/v1/audio/speech`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Speech)
    if not params.input:
        raise BadRequest("expected a text", "input")
    return _request("speech", params.model, fields, passing, characters=len(params.input))


@wire.parser
def read_images(body: bytes, passing: Passing = PLAIN) -> MediaRequest:
    """Parse a request to `/v1/images/generations`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Images)
    if not params.prompt:
        raise BadRequest("expected a text", "prompt")
    return _request("images", params.model, fields, passing, answers=params.n or 1)


def _request(
    kind: Dialect, model: str, fields: gate.Fields, passing: Passing, *, characters: int = 0, answers: int = 1
) -> MediaRequest:
    if not model:
        raise BadRequest("expected a name", "model")
    for name in fields.keys() & passing.fields:
        bounds.check(name, msgspec.json.decode(fields[name]))
    result = gate.filter_fields(fields, passing)
    return MediaRequest(
        kind=kind, model=model, fields=result.fields, characters=characters, answers=answers, dropped=result.dropped
    )
