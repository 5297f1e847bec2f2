"""A request between its body and its Exchange: what reading has in common for all kinds of inference."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.access.rate_limits import Share
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.errors import OLLAMA, Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.ollama.models import without_tag
from cortex.router.http_answer import Answering
from cortex.router.live_catalogue import Target
from cortex.router.model_traits import TraitsCache
from cortex.router.request.call import Call
from cortex.router.request.incoming import Incoming
from cortex.router.request.intake import LARGE
from cortex.router.request.keep_alive import HEADER, keep_s
from cortex.router.request.prompt_cache import CacheSalts
from cortex.router.request.remote_images import RemoteImages
from cortex.router.request.substitutes import Conversation
from cortex.router.request.tokenizer import Tokenizer
from cortex.router.routes.entrance import Entrance


class Peek(Struct, frozen=True):
    """The part of a body that is read before its function is known."""

    model: str
    keep_alive: float | str | None = None


class Reading:
    """What the readers of one router worker have in common."""

    def __init__(self, entrance: Entrance, images: RemoteImages, salts: CacheSalts) -> None:
        self.entrance, self.images, self.salts = entrance, images, salts
        self.view, self.in_flight = entrance.exchanges.view, entrance.exchanges.admission.in_flight
        self.tokenizer, self._traits = Tokenizer(entrance.exchanges.upstream), TraitsCache()

    def traits(self, target: Target, kind: Dialect) -> Traits:
        """Return what a function accepts in a dialect, as far as its ready instances are known."""
        return self._traits.of(target.function, kind, self.view.profile(target.base.id), self.ready(target))

    async def peek(self, kind: Dialect, body: bytes) -> Peek:
        """Return what a body says before its function is known, with the model's name as the catalogue has it: Ollama's
        clients add a tag."""
        size = len(body)
        fields = wire.peek(body, Peek) if size < LARGE else await self.entrance.intake.work(size, wire.peek, body, Peek)
        if kind in OLLAMA and self.entrance.exchanges.catalogue.get(fields.model) is None:
            return replace(fields, model=without_tag(fields.model))
        return fields

    def ready(self, target: Target) -> Sequence[Instance]:
        """Return the ready instances of a function."""
        return self.view.ready(target.base.id, target.revision)


class Reader(ABC):
    """Reads one request for the function that its model's name stands for, and again if that changes while it waits."""

    def __init__(self, entrance: Entrance, request: Incoming, kind: Dialect, share: Share, size: int) -> None:
        """`size` is what the key's share of limits is charged with for the request, in bytes."""
        self.request, self.kind, self.caller = request, kind, request.caller
        self.intake, self.catalogue = entrance.intake, entrance.exchanges.catalogue
        self._entrance, self._share, self._size = entrance, share, size
        self._started = time.monotonic()
        self._keep_alive: float | str | None = None

    async def exchange(self, name: str) -> Answering:
        """Return what serves the request from the function of that name. Raises RequestError."""
        target = self.catalogue.resolve_for(name, self.caller)
        call = await self.parse(target)
        if self._share.is_limited:
            await self._share.adjust(self._size, call.answers)
        has_substitute = self.catalogue.substitute(name, self.caller) is not None
        conversation = await self.conversation(call) if has_substitute else None
        return self._entrance.exchange_of(
            self.request, target, call, self.parse, name, self.caller, self._started, self._share, conversation
        )

    @abstractmethod
    async def parse(self, target: Target) -> Call:
        """Read the request for a target. Raises RequestError for one that its function cannot answer."""

    async def conversation(self, call: Call) -> Conversation | None:
        """Return the conversation that the name's substitute may take part in; None: it may not answer."""
        return None

    def others(self) -> Iterable[Function]:
        """Return the functions that the caller may use."""
        return self.catalogue.usable(self.caller)

    def keep_s(self, target: Target) -> float | None:
        """Return how long the request keeps its instance idle, in seconds; None: as long as any other."""
        return keep_s(self.request.headers.get(HEADER), self._keep_alive, target.function)


class JsonReader(Reader):
    """Reads a request whose body is JSON."""

    def __init__(self, reading: Reading, request: Incoming, kind: Dialect, body: bytes, share: Share) -> None:
        super().__init__(reading.entrance, request, kind, share, len(body))
        self.body, self._reading = body, reading

    async def answer(self) -> Answering:
        """Return what serves the request."""
        return await self.exchange(await self.model())

    async def model(self) -> str:
        """Return the name of the model."""
        fields = await self._reading.peek(self.kind, self.body)
        self._keep_alive = fields.keep_alive
        return fields.model
