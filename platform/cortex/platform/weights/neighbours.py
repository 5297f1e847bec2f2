"""The client of other agents of the fleet, the neighbours: what they offer, and its transfer.

A router sends each agent its neighbours with a token for each; the agent writes them to a private file, which the job
worker reads too. A neighbour is an opportunity, never a need: one that is silent, slow, breaks off or lies is logged
once and left alone for the rest of the fetch, and the fetch goes on without it. What it sends is data: the receiver
checks it against the hash that the hub names.
"""

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import httpx
import msgspec
import structlog

from cortex.platform import keys
from cortex.platform.agent_messages import KernelOffer, KernelRequest, Neighbour, Neighbours, Offers
from cortex.platform.serving.trust import trust
from cortex.platform.settings import Settings

log = structlog.get_logger()

CHUNK = 512 * 1024
"""The most that a broken transfer loses, and the progress step."""
CONNECT_S, READ_S = 2.0, 10.0
OFFERS_S = 4.0
"""Time limit for a list of offers."""
OFFERS_BYTES = 16 * 1024 * 1024
AT_A_TIME = 16
"""Neighbours that are asked for their offers at the same time."""
MOST = 256
"""Neighbours of a fetch."""
PACE_S, PACE_BYTES = 10.0, 10 * 1024 * 1024
"""A transfer that sends fewer bytes in this time is given up."""


def neighbours_file(state_dir: str) -> Path:
    """Return the private file with an agent's neighbours."""
    return Path(state_dir) / "neighbours.json"


def read(path: Path) -> tuple[Neighbour, ...]:
    """Return the neighbours in a file; none when there is none."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Neighbours).hosts
    return ()


def encode(neighbours: Neighbours) -> bytes:
    """Return the content of the file."""
    return msgspec.json.encode(neighbours)


class NeighbourLost(Exception):
    """A neighbour did not send what it offers; the text says why."""


class NeighbourClient:
    """Talks to the neighbours of one host during one fetch. May be used from several threads; blocks."""

    def __init__(self, hosts: Collection[Neighbour], ca_file: str = "") -> None:
        """With `ca_file` the fleet uses TLS: a neighbour without it is then not called."""
        usable = [h for h in hosts if not ca_file or h.address.lower().startswith("https://")]
        self._hosts = random.sample(usable, min(len(usable), MOST))  # so that load spreads over those with the same
        self._lock, self._lost, self._distrusted = Lock(), set[str](), set[str]()
        self._offers: dict[str, Offers] | None = None
        self._http: httpx.Client | None = None
        if self._hosts:
            timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
            self._http = httpx.Client(verify=trust(ca_file), timeout=timeout, trust_env=False)

    @classmethod
    def of(cls, settings: Settings) -> "NeighbourClient":
        """Return a client for the neighbours that this host's agent has been sent."""
        return cls(read(neighbours_file(settings.agent.state_dir)), settings.ca_file)

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()

    def holders(self, digest: str, size: int) -> list[Neighbour]:
        """Return the neighbours that offer a file with this SHA-256 and size, without those given up."""
        with self._lock:
            if self._offers is None:
                self._offers = self._ask_all()
            return [
                h
                for h in self._hosts
                if h.host not in self._lost
                and digest not in self._distrusted
                and (offers := self._offers.get(h.host))
                and offers.weights.get(digest) == size
            ]

    def receive(
        self, neighbour: Neighbour, digest: str, offset: int, size: int, write: Callable[[bytes], object]
    ) -> None:
        """Write a file's bytes from an offset to its end. Raises NeighbourLost, and what `write` raises.

        What has been written by then stays: the next source goes on from there.
        """
        left, since, seen = size - offset, time.monotonic(), 0
        try:
            with self._get(neighbour, f"/offers/{digest}", {"range": f"bytes={offset}-"}) as answer:
                if answer.status_code != httpx.codes.PARTIAL_CONTENT:
                    raise NeighbourLost(f"it answers {answer.status_code}")
                for chunk in answer.iter_raw(CHUNK):
                    if len(chunk) > left:
                        raise NeighbourLost("it sends more than the file has")
                    write(chunk)
                    left, seen = left - len(chunk), seen + len(chunk)
                    if left and time.monotonic() - since > PACE_S:
                        if seen < PACE_BYTES:
                            raise NeighbourLost("it is slow")
                        since, seen = time.monotonic(), 0
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NeighbourLost(str(error) or type(error).__name__) from None
        if left:
            raise NeighbourLost("it broke off")

    def kernels(self, request: KernelRequest, hosts: Collection[str]) -> Iterator[tuple[Neighbour, KernelOffer]]:
        """Yield the packs that neighbours with these names (`*`: any) offer, each proved to come from its host."""
        for neighbour in self._hosts:
            if "*" not in hosts and neighbour.host not in hosts:
                continue
            try:
                offer = self._ask_kernels(neighbour, request)
            except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError) as error:
                log.info("neighbour_silent", neighbour=neighbour.host, why=str(error) or type(error).__name__)
                continue
            if offer is None or not offer.digest:
                continue
            expected = keys.proof(neighbour.seal, request.proves(offer.digest))
            if neighbour.seal and any([keys.same(p, expected) for p in offer.proofs]):
                yield neighbour, offer
            else:
                self.give_up(neighbour, "its compiled code is not proved to come from it")

    def _ask_kernels(self, neighbour: Neighbour, request: KernelRequest) -> KernelOffer | None:
        assert self._http is not None
        answer = self._http.post(
            f"{neighbour.address}/kernels",
            content=msgspec.json.encode(request),
            headers={"authorization": f"Bearer {neighbour.token}", "content-type": "application/json"},
        )
        if answer.status_code != httpx.codes.OK:
            return None
        return msgspec.json.decode(answer.content, type=KernelOffer)

    def give_up(self, neighbour: Neighbour, why: str) -> None:
        """Use a neighbour no more, and log it once."""
        with self._lock:
            known = neighbour.host in self._lost
            self._lost.add(neighbour.host)
        if not known:
            log.warning("neighbour_ignored", neighbour=neighbour.host, why=why)

    def distrust(self, digest: str) -> None:
        """Take a file from no neighbour any more: its bytes did not have the hash."""
        with self._lock:
            self._distrusted.add(digest)

    def _ask_all(self) -> dict[str, Offers]:
        """Ask every neighbour what it offers. One that does not answer offers nothing."""
        if not self._hosts:
            return {}
        with ThreadPoolExecutor(min(AT_A_TIME, len(self._hosts)), thread_name_prefix="offers") as pool:
            answers = pool.map(self._ask, self._hosts)
        return {h.host: offers for h, offers in zip(self._hosts, answers, strict=True) if offers is not None}

    def _ask(self, neighbour: Neighbour) -> Offers | None:
        until, received = time.monotonic() + OFFERS_S, bytearray()
        try:
            with self._get(neighbour, "/offers", {}) as answer:
                if answer.status_code != httpx.codes.OK:
                    log.info("neighbour_offers_nothing", neighbour=neighbour.host, status=answer.status_code)
                    return None
                for chunk in answer.iter_raw():
                    received += chunk
                    if len(received) > OFFERS_BYTES or time.monotonic() > until:
                        raise NeighbourLost("its list of offers is too long or too slow")
            return msgspec.json.decode(received, type=Offers)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError, NeighbourLost) as error:
            log.info("neighbour_silent", neighbour=neighbour.host, why=str(error) or type(error).__name__)
            return None

    @contextlib.contextmanager
    def _get(self, neighbour: Neighbour, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        assert self._http is not None
        secret = {"authorization": f"Bearer {neighbour.token}", "accept-encoding": "identity"}
        with self._http.stream("GET", neighbour.address + path, headers={**secret, **headers}) as answer:
            yield answer
