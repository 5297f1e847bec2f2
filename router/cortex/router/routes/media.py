"""Routes for audio and images: OpenAI's transcriptions, translations, speech, and images."""

import time
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from cortex.functions.passing import Passing, passing
from cortex.functions.servers import server_of
from cortex.functions.spec import Function
from cortex.router.access.rate_limits import Share
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.gate import header
from cortex.router.dialects.media import PATHS
from cortex.router.dialects.media.answer import Reply
from cortex.router.dialects.media.request import MediaRequest, read_images, read_speech
from cortex.router.dispatch import Handler
from cortex.router.live_catalogue import Target
from cortex.router.request.call import Call
from cortex.router.request.capability_checks import check_dialect
from cortex.router.request.http_answer import Answering
from cortex.router.request.incoming import Incoming
from cortex.router.request.keep_alive import HEADER, keep_s
from cortex.router.request.upload import Upload
from cortex.router.routes.entrance import Entrance

READS: dict[Dialect, Callable[[bytes, Passing], MediaRequest]] = {"speech": read_speech, "images": read_images}


class _Peek(Struct, frozen=True):
    """The part of a body that routing needs before the function is resolved."""

    model: str


def routes(entrance: Entrance) -> dict[str, Handler]:
    """Return the routes, by path. All are POST."""
    catalogue, intake = entrance.exchanges.catalogue, entrance.intake

    async def form(request: Incoming, kind: Dialect, upload: Upload, share: Share) -> Answering:
        started, name, who = time.monotonic(), upload.form.model, request.caller
        target = catalogue.resolve_for(name, who)

        async def parse(target: Target) -> Call:
            function = target.function
            check_dialect(function, kind, catalogue.usable(who))
            reply = Reply(kind)
            return Call(
                dialect=kind,
                path=PATHS[kind],
                body=b"",
                reply=reply,
                media=reply,
                form=upload.to(target.worker_model, _passing(function, kind)),
                answers=upload.form.answers,
                keep_s=keep_s(request.headers.get(HEADER), None, function),
            )

        call = await parse(target)
        await share.adjust(0, call.answers)
        upload.cover = partial(share.adjust, 0)
        return entrance.exchange_of(request, target, call, parse, name, who, started, share)

    async def body(request: Incoming, kind: Dialect, content: bytes, share: Share) -> Answering:
        started, who = time.monotonic(), request.caller
        name = (await intake.work(len(content), wire.peek, content, _Peek)).model
        target = catalogue.resolve_for(name, who)

        async def parse(target: Target) -> Call:
            function = target.function
            check_dialect(function, kind, catalogue.usable(who))
            parsed = await intake.work(len(content), READS[kind], content, _passing(function, kind))
            return Call(
                dialect=kind,
                path=PATHS[kind],
                body=await intake.work(len(content), parsed.body, target.worker_model),
                reply=parsed.reply,
                media=parsed.reply,
                answers=parsed.answers,
                dropped=header(parsed.dropped),
                keep_s=keep_s(request.headers.get(HEADER), None, function),
            )

        call = await parse(target)
        await share.adjust(len(content), call.answers)
        return entrance.exchange_of(request, target, call, parse, name, who, started, share)

    async def transcriptions(request: Incoming) -> Answering:
        """Transcribe speech."""
        return await serve_form(request, "transcriptions")

    async def translations(request: Incoming) -> Answering:
        """Translate speech into English text."""
        return await serve_form(request, "translations")

    async def image_edits(request: Incoming) -> Answering:
        """Edit images."""
        return await serve_form(request, "image_edits")

    async def speech(request: Incoming) -> Answering:
        """Turn text into speech."""
        return await serve_body(request, "speech")

    async def images(request: Incoming) -> Answering:
        """Generate images."""
        return await serve_body(request, "images")

    async def serve_form(request: Incoming, kind: Dialect) -> Answering:
        return await entrance.receive_form(request, kind, lambda upload, share: form(request, kind, upload, share))

    async def serve_body(request: Incoming, kind: Dialect) -> Answering:
        return await entrance.receive(request, kind, lambda content, share: body(request, kind, content, share))

    return {
        PATHS["transcriptions"]: transcriptions,
        PATHS["translations"]: translations,
        PATHS["speech"]: speech,
        PATHS["images"]: images,
        PATHS["image_edits"]: image_edits,
    }


def _passing(function: Function, kind: Dialect) -> Passing:
    """Return the fields that pass to a function."""
    match kind:
        case "transcriptions" | "translations" | "speech" | "images" | "image_edits":
            return passing(server_of(function).family, kind, function.allow)
    raise ValueError(f"{kind} is not a dialect of audio or images")
