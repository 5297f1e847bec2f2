"""Compiled code from other hosts: what a start fetches before its engine would compile, and what this host offers.

Code is used only where everything it depends on is equal (`KernelRequest`), and only from hosts that `[agent]
kernels_from` names: whose code runs here can do here what a worker can. The pack's hash is proved to come from that
host by a seal that is sent to neither (`keys.py`), so a forged address in the record cannot pass code off as its own.

A fetch has a time limit, and a start that gets nothing compiles by itself. With `[agent] worker_user` nothing is
fetched or offered: the caches then belong to another user.
"""

import contextlib
import hashlib
import time
from functools import partial
from pathlib import Path

import structlog

from cortex.platform.agent_messages import KernelOffer, KernelRequest, Neighbour
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.keys import HostToken
from cortex.platform.settings import Settings
from cortex.platform.weights import compiled
from cortex.platform.weights.neighbours import NeighbourClient, NeighbourLost
from cortex.platform.workers import compile_caches, kernel_pack
from cortex.platform.workers.kernel_pack import BadPack

log = structlog.get_logger()

FETCH_S = 30.0
"""Time limit of a start's fetch: about what compiling takes."""
PACK_S = 8.0
"""Time limit of writing a pack; a neighbour waits `neighbours.READ_S`."""
PACK_AGE_S = 600.0
"""How long a pack is offered after it was written."""


class Kernels:
    """The exchange of compiled code of one agent."""

    def __init__(self, settings: Settings, token: HostToken) -> None:
        self._settings, self._token = settings, token
        self._cache_dir = Path(settings.agent.cache_dir)
        self._most_bytes = settings.agent.keep_mb << 20
        self._fetches = BlockingCalls(FETCH_S + 1, hint="is a neighbour slow?")
        self._packing = BlockingCalls(PACK_S, hint="is its disk slow?")
        self._offers: dict[Path, tuple[KernelOffer, float]] = {}

    def request(self, cache: Path, revision: str, settings: str, place: str) -> KernelRequest:
        """Return what fits a start on this host."""
        return KernelRequest(
            host=self._settings.host_name,
            build=cache.parent.name,
            device=cache.name,
            revision=revision,
            settings=settings,
            place=place,
        )

    async def fetch(self, cache: Path, request: KernelRequest) -> str:
        """Fetch the code for a start, unless this host has it. Return the host that it came from, or ""."""
        agent = self._settings.agent
        if not agent.kernels_from or agent.worker_user or not request.settings:
            return ""
        work = partial(self._fetch, cache, request, time.monotonic() + FETCH_S)
        try:
            return await self._fetches.look(str(cache), "kernels", work, question=request)
        except (OSError, ValueError) as error:  # NoAnswer is an OSError
            log.warning("kernels_not_fetched", why=str(error))
            return ""

    def _fetch(self, cache: Path, request: KernelRequest, until: float) -> str:
        if compile_caches.has_code(cache, request.revision, request.settings, request.place):
            return ""
        client = NeighbourClient.of(self._settings)
        try:
            for neighbour, offer in client.kernels(request, self._settings.agent.kernels_from):
                since = time.monotonic()
                if since > until:
                    break
                try:
                    units = self._receive(client, neighbour, offer, cache, until)
                except (NeighbourLost, BadPack) as error:
                    client.give_up(neighbour, str(error))
                    continue
                log.info(
                    "kernels_fetched",
                    neighbour=neighbour.host,
                    units=units,
                    mb=offer.size >> 20,
                    seconds=round(time.monotonic() - since, 3),
                )
                return neighbour.host if units else ""
        finally:
            client.close()
        return ""

    def _receive(
        self, client: NeighbourClient, neighbour: Neighbour, offer: KernelOffer, cache: Path, until: float
    ) -> int:
        """Put a neighbour's pack into a cache. Return the number of units. Raises NeighbourLost, BadPack or OSError."""
        if not 0 < offer.size <= self._most_bytes:
            raise BadPack("it is larger than [agent] keep_mb")
        received = hashlib.sha256()
        draft = kernel_pack.new_file(self._cache_dir)
        try:
            with draft.open("xb") as file:

                def write(chunk: bytes) -> None:
                    if time.monotonic() > until:
                        raise NeighbourLost("it is slower than compiling")
                    received.update(chunk)
                    file.write(chunk)

                client.receive(neighbour, offer.digest, 0, offer.size, write)
            if received.hexdigest() != offer.digest:
                raise BadPack("its compiled code does not have the hash")
            units = kernel_pack.put_into(cache, draft, self._cache_dir, self._most_bytes)
            if units:
                compiled.note(cache, neighbour.host, offer.size)
            return units
        finally:
            draft.unlink(missing_ok=True)

    async def tidy(self) -> None:
        """Remove old packs, and what a killed process left."""
        work = partial(kernel_pack.tidy, self._cache_dir, self._most_bytes, PACK_AGE_S, time.time())
        with contextlib.suppress(NoAnswer):
            await self._packing.look(str(self._cache_dir), "tidy", work)

    async def offer(self, request: KernelRequest) -> KernelOffer:
        """Return the pack of the code that fits a neighbour's start; one without a digest when there is none."""
        agent = self._settings.agent
        if not agent.offer_mb_s or agent.worker_user:
            return KernelOffer()
        try:
            offer = await self._packing.look(
                str(self._cache_dir), "pack", partial(self._pack, request), question=request
            )
        except OSError as error:  # also NoAnswer, and files that a start removes
            log.warning("kernels_not_offered", why=str(error))
            return KernelOffer()
        if not offer.digest:
            return offer
        proofs = self._token.proofs(request.host, request.proves(offer.digest))
        return KernelOffer(digest=offer.digest, size=offer.size, proofs=proofs)

    def _pack(self, request: KernelRequest) -> KernelOffer:
        now = time.time()
        kernel_pack.tidy(self._cache_dir, self._most_bytes, PACK_AGE_S, now)
        for cache in compiled.caches(self._cache_dir):
            # The request selects a folder by its name: it never becomes a path.
            if (cache.parent.name, cache.name) != (request.build, request.device):
                continue
            if not compile_caches.has_code(cache, request.revision, request.settings, request.place):
                continue
            offer, until = self._offers.get(cache, (KernelOffer(), 0.0))
            if now > until or offer.digest not in kernel_pack.packs(self._cache_dir):
                digest, size = kernel_pack.write(cache, self._cache_dir, self._most_bytes) or ("", 0)
                offer = KernelOffer(digest=digest, size=size)
                self._offers[cache] = offer, now + PACK_AGE_S / 10
            return offer
        return KernelOffer()
