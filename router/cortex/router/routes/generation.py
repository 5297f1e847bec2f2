"""Requests for which a model writes an answer: read for a worker's chat or completions endpoint, or as they are."""

import time
from functools import partial

from msgspec.structs import replace

from cortex.router.access.rate_limits import Share
from cortex.router.activation.load_balancing import affinity
from cortex.router.dialects import dialect, gate, native
from cortex.router.dialects.chat import stream
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.ollama import request as ollama
from cortex.router.dialects.ollama.answer import Form, Ready
from cortex.router.dialects.responses import request as responses
from cortex.router.http_answer import Answering, json_answer
from cortex.router.live_catalogue import Target
from cortex.router.request.call import Call
from cortex.router.request.capability_checks import check_dialect
from cortex.router.request.context_window import fitting
from cortex.router.request.incoming import Incoming
from cortex.router.request.intake import LARGE
from cortex.router.request.stored_responses import Plan
from cortex.router.request.substitutes import Conversation, conversation_of
from cortex.router.routes.reader import JsonReader, Reading

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class GenerationReader(JsonReader):
    """Reads chats, prompts, messages and responses. With a `plan`, the answer is stored."""

    def __init__(
        self, reading: Reading, request: Incoming, kind: Dialect, body: bytes, share: Share, plan: Plan | None = None
    ) -> None:
        super().__init__(reading, request, kind, body, share)
        self._plan = plan
        self._unique, self._created = plan.unique if plan else request.unique, int(time.time())

    async def parse(self, target: Target) -> Call:
        """Read the request in its own dialect or translated, as the function takes it."""
        function, kind, plan, reading = target.function, self.kind, self._plan, self._reading
        check_dialect(function, kind, self.others)
        content = await reading.images.inline(self.body) if function.remote_images else self.body
        traits = reading.traits(target, kind)
        salt = reading.salts.of(function, self.caller)
        native_dialect = None if plan else native.native_dialect(function, kind, cache_is_shared=not salt)

        def translate() -> tuple[dialect.ParsedRequest, Body]:
            parsed = (
                dialect.read_request(kind, content, traits)
                if native_dialect is None
                else native.read(native_dialect, content, traits)
            )
            return parsed, parsed.body(target.worker_model)

        size = len(content)
        parsed, sent = translate() if size < LARGE else await self.intake.work(size, translate)
        fit = partial(fitting, model=target.worker_model)
        reply = parsed.answer(self._unique, self._created)
        if isinstance(reply, stream.Reply):
            reply = replace(reply, model=function.id)  # same dialect: the answer passes through unchanged
        elif isinstance(reply, responses.Reply | ollama.Reply):
            reply = reply.with_clock(time.time)
        if plan is not None and isinstance(reply, responses.Reply):
            reply = plan.reply = reply.with_state(plan.state)
        return Call(
            dialect=kind,
            path=native.PATHS[native_dialect] if native_dialect else COMPLETIONS if parsed.completes else CHAT,
            body=sent,
            reply=reply,
            streams=reply if parsed.stream else None,
            affinity=affinity(self.request.headers, parsed.affinity),
            dropped=gate.header(parsed.dropped),
            answers=parsed.choices,
            cache_salt=salt,
            settle=None if native_dialect else fit(reading.tokenizer, function, kind, parsed, sent, traits),
            fitted=reply.with_limit,
            cuts=parsed.cuts,
            limit_field=parsed.limit_field,
            keep_s=self.keep_s(target),
        )

    async def conversation(self, call: Call) -> Conversation | None:
        """Return the conversation of the request."""
        body, id = self.body, self.caller.id
        return await self.intake.work(len(body), conversation_of, self.kind, body, call.affinity, id)


class LoadReader(JsonReader):
    """Reads Ollama's request without a prompt: it loads the function, or with a `keep_alive` of 0 lets its idle
    instances go, as any request with 0 does. A cold one is not started for that."""

    def __init__(
        self, reading: Reading, request: Incoming, kind: Dialect, body: bytes, share: Share, form: Form
    ) -> None:
        super().__init__(reading, request, kind, body, share)
        self._form, self._name = form, ""

    async def answer(self) -> Answering:
        """Return what serves the request."""
        self._name = await self.model()
        target = self.catalogue.resolve_for(self._name, self.caller)
        call = await self.parse(target)
        if call.keep_s == 0 and not self._let_go(target, call.keep_s):
            await self._share.settle()
            return json_answer(200, call.reply.plain(b"").body, self.request.id).send
        return await self.exchange(self._name)

    async def parse(self, target: Target) -> Call:
        """Return a call that sends nothing to the worker."""
        keep_s = self.keep_s(target)
        reply = Ready(self._form, self._name, "unload" if keep_s == 0 else "load", time.time)
        return Call(dialect=self.kind, path="", body=b"", reply=reply, keep_s=keep_s)

    def _let_go(self, target: Target, keep_s: float) -> bool:
        """Have the function's instances kept for this time only. False: it has none."""
        reading, ready = self._reading, self._reading.ready(target)
        for instance in ready:
            with reading.in_flight.track(target.base.id, instance.id, target.share):
                reading.in_flight.keep(instance.id, keep_s)
        return bool(ready)
