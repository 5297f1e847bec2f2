"""Routes for audio and images: OpenAI's transcriptions, translations, speech, and images."""

from collections.abc import Callable
from functools import partial

from cortex.functions.passing import Passing, passing
from cortex.functions.servers import server_of
from cortex.functions.spec import Function
from cortex.router.access.rate_limits import Share
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.gate import header
from cortex.router.dialects.media import PATHS
from cortex.router.dialects.media.answer import Reply
from cortex.router.dialects.media.request import MediaRequest, read_images, read_speech
from cortex.router.dispatch import Handler
from cortex.router.http_answer import Answering
from cortex.router.live_catalogue import Target
from cortex.router.request.call import Call
from cortex.router.request.capability_checks import check_dialect
from cortex.router.request.incoming import Incoming
from cortex.router.request.upload import Upload
from cortex.router.routes.entrance import Entrance
from cortex.router.routes.reader import JsonReader, Reader, Reading

READS: dict[Dialect, Callable[[bytes, Passing], MediaRequest]] = {"speech": read_speech, "images": read_images}


class FormReader(Reader):
    """Reads a form, whose file goes to the worker as it comes."""

    def __init__(self, entrance: Entrance, request: Incoming, kind: Dialect, upload: Upload, share: Share) -> None:
        super().__init__(entrance, request, kind, share, 0)
        self._upload = upload

    async def answer(self) -> Answering:
        """Return what serves the request. Fields that follow the file are taken into the key's share when they come."""
        answering = await self.exchange(self._upload.form.model)
        self._upload.cover = partial(self._share.adjust, 0)
        return answering

    async def parse(self, target: Target) -> Call:
        """Read the request for a target."""
        function, kind, reply = target.function, self.kind, Reply(self.kind)
        check_dialect(function, kind, self.others)
        return Call(
            dialect=kind,
            path=PATHS[kind],
            body=b"",
            reply=reply,
            media=reply,
            form=self._upload.to(target.worker_model, _passing(function, kind)),
            answers=self._upload.form.answers,
            keep_s=self.keep_s(target),
        )


class MediaReader(JsonReader):
    """Reads a request for speech or images, whose body is JSON."""

    async def parse(self, target: Target) -> Call:
        """Read the request for a target."""
        function, kind, size = target.function, self.kind, len(self.body)
        check_dialect(function, kind, self.others)
        parsed = await self.intake.work(size, READS[kind], self.body, _passing(function, kind))
        return Call(
            dialect=kind,
            path=PATHS[kind],
            body=await self.intake.work(size, parsed.body, target.worker_model),
            reply=parsed.reply,
            media=parsed.reply,
            answers=parsed.answers,
            dropped=header(parsed.dropped),
            keep_s=self.keep_s(target),
        )


def routes(reading: Reading) -> dict[str, Handler]:
    """Return the routes, by path. All are POST."""
    entrance = reading.entrance

    def form(kind: Dialect) -> Handler:
        return partial(
            entrance.receive_form,
            kind,
            lambda request, upload, share: FormReader(entrance, request, kind, upload, share).answer(),
        )

    def body(kind: Dialect) -> Handler:
        return partial(
            entrance.receive,
            kind,
            lambda request, body, share: MediaReader(reading, request, kind, body, share).answer(),
        )

    return {
        PATHS["transcriptions"]: form("transcriptions"),
        PATHS["translations"]: form("translations"),
        PATHS["speech"]: body("speech"),
        PATHS["images"]: body("images"),
        PATHS["image_edits"]: form("image_edits"),
    }


def _passing(function: Function, kind: Dialect) -> Passing:
    """Return the fields that pass to a function."""
    match kind:
        case "transcriptions" | "translations" | "speech" | "images" | "image_edits":
            return passing(server_of(function).family, kind, function.allow)
    raise ValueError(f"{kind} is not a dialect of audio or images")
