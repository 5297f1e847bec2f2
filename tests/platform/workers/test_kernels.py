"""Compiled code from a neighbour: used when all is equal and it is proved, and otherwise a start compiles."""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from cortex.platform.agent_messages import KernelOffer, KernelRequest, Neighbour, Neighbours
from cortex.platform.keys import FleetToken, HostToken
from cortex.platform.settings import Agent, Settings
from cortex.platform.weights import compiled, neighbours
from cortex.platform.workers import compile_caches, kernel_pack
from cortex.platform.workers.kernels import Kernels
from tests.platform.workers.test_kernel_pack import FILES, a_cache, content
from tests.support.neighbour import TOKEN, NeighbourDouble, neighbour_double

BUILD, DEVICE, PLACE = "vllm-0-26", "h200", "place"


class Host:
    """A host of a fleet: its settings, its caches, and its exchange of code."""

    def __init__(self, folder: Path, name: str, **agent: Any) -> None:
        self.folder = folder / name
        own = Agent(name=name, cache_dir=str(self.folder), state_dir=str(self.folder / "state"), **agent)
        (self.folder / "state").mkdir(parents=True)
        self.settings = Settings(agent=own, token_file=str(folder / "token"))
        self.kernels = Kernels(self.settings, HostToken.of(self.settings))
        self.cache = self.folder / "engines" / BUILD / DEVICE

    @property
    def request(self) -> KernelRequest:
        return self.kernels.request(self.cache, "revision", "full", PLACE)

    def compile(self) -> None:
        """Have compiled code."""
        content = {name: b for name, b in FILES.items() if name.startswith("vllm")}
        a_cache(self.cache, content)
        compile_caches.mark(self.cache, "revision", "full", PLACE)

    def knows(self, double: NeighbourDouble, seal: str) -> None:
        """Have a neighbour."""
        known = Neighbour(host=double.host, address=double.address, token=TOKEN, seal=seal)
        path = neighbours.neighbours_file(self.settings.agent.state_dir)
        path.write_bytes(neighbours.encode(Neighbours(hosts=(known,))))


@pytest.fixture
def a(tmp_path: Path) -> Host:
    host = Host(tmp_path, "a")
    host.compile()
    return host


@pytest.fixture
def b(tmp_path: Path) -> Host:
    return Host(tmp_path, "b", kernels_from=("a",))


@pytest.fixture
def near(a: Host, b: Host, tmp_path: Path) -> Iterator[NeighbourDouble]:
    """Host `a`, as an HTTP server: `b` knows it as a router would have told it."""
    with neighbour_double("a") as double:
        b.knows(double, FleetToken(tmp_path / "token").seal_between("a", "b"))
        yield double


async def offer(a: Host, b: Host, near: NeighbourDouble) -> KernelOffer:
    """Have `a` answer what `b` will ask."""
    result = await a.kernels.offer(b.request)
    near.kernels = msgspec.json.encode(result)
    near.files = {digest: path.read_bytes() for digest, path in kernel_pack.packs(a.folder).items()}
    return result


async def test_code_that_fits_is_fetched_once(a: Host, b: Host, near: NeighbourDouble) -> None:
    await offer(a, b, near)

    first = await b.kernels.fetch(b.cache, b.request)
    compile_caches.mark(b.cache, "revision", "full", PLACE)
    second = await b.kernels.fetch(b.cache, b.request)

    received = {name: c for name, c in content(b.cache).items() if name.startswith("vllm")}
    assert (first, second, len(near.transfers)) == ("a", "", 1)
    assert received == {name: c for name, c in content(a.cache).items() if name.startswith("vllm")}
    (entry,) = compiled.list_caches(b.folder)
    assert (entry.name, entry.origins) == (f"compiled:{BUILD}/{DEVICE}", {"a": near_size(near)})
    assert [p.name for p in kernel_pack.folder_of(b.folder).iterdir()] == []


def near_size(near: NeighbourDouble) -> int:
    (size,) = (len(content) for content in near.files.values())
    return size


@pytest.mark.parametrize(
    "other",
    [{"build": "vllm-0-27"}, {"device": "h100"}, {"revision": "next"}, {"settings": "few graphs"}, {"place": "other"}],
    ids=str,
)
async def test_code_that_differs_in_anything_is_not_offered(a: Host, b: Host, other: dict[str, str]) -> None:
    assert await a.kernels.offer(replace(b.request, **other)) == KernelOffer()


@pytest.mark.parametrize("name", ["../..", "/", "", ".", "engines"])
async def test_no_name_of_a_request_becomes_a_path(a: Host, b: Host, name: str) -> None:
    request = replace(b.request, build=name, device=name, revision=name, settings=name)

    assert await a.kernels.offer(request) == KernelOffer()


def sealed_by_another(offer: KernelOffer, b: Host) -> KernelOffer:
    forged = hmac.new(b"another", b.request.proves(offer.digest).encode(), hashlib.sha256).hexdigest()
    return replace(offer, proofs=(forged,))


def for_another_pack(offer: KernelOffer, b: Host) -> KernelOffer:
    return replace(offer, digest="0" * 64)


def too_large(offer: KernelOffer, b: Host) -> KernelOffer:
    return replace(offer, size=1 << 60)


def without_a_proof(offer: KernelOffer, b: Host) -> KernelOffer:
    return replace(offer, proofs=())


@pytest.mark.parametrize("lie", [sealed_by_another, for_another_pack, too_large, without_a_proof])
async def test_a_host_that_lies_is_ignored_and_logged_once(
    a: Host, b: Host, near: NeighbourDouble, lie: Callable[[KernelOffer, Host], KernelOffer]
) -> None:
    near.kernels = msgspec.json.encode(lie(await offer(a, b, near), b))

    with capture_logs() as lines:
        source = await b.kernels.fetch(b.cache, b.request)

    assert (source, content(b.folder / "engines")) == ("", {})
    assert [(e["event"], e["neighbour"]) for e in lines] == [("neighbour_ignored", "a")]


async def test_bytes_without_the_hash_are_not_used(a: Host, b: Host, near: NeighbourDouble) -> None:
    result = await offer(a, b, near)
    near.files = {result.digest: bytes(result.size)}

    assert await b.kernels.fetch(b.cache, b.request) == ""
    assert content(b.folder / "engines") == {}


@pytest.mark.parametrize("fault", [{"cut_after": 100}, {"status": 503}, {"kernels": b"no json"}], ids=str)
async def test_a_host_that_breaks_off_leaves_nothing(
    a: Host, b: Host, near: NeighbourDouble, fault: dict[str, Any]
) -> None:
    await offer(a, b, near)
    for name, value in fault.items():
        setattr(near, name, value)

    assert await b.kernels.fetch(b.cache, b.request) == ""
    assert content(b.folder / "engines") == {}
    assert list((b.folder / "kernels").glob("*")) == []


@pytest.mark.parametrize("names", [(), ("c",)], ids=str)
async def test_code_of_a_host_that_is_not_named_is_not_fetched(
    a: Host, b: Host, near: NeighbourDouble, names: tuple[str, ...]
) -> None:
    await offer(a, b, near)
    own = replace(b.settings, agent=replace(b.settings.agent, kernels_from=names))

    assert await Kernels(own, HostToken.of(own)).fetch(b.cache, b.request) == ""
    assert near.transfers == []


@pytest.mark.parametrize("agent", [{"offer_mb_s": 0}, {"worker_user": "nobody"}], ids=str)
async def test_a_host_that_may_not_offer_makes_no_pack(a: Host, b: Host, agent: dict[str, Any]) -> None:
    own = replace(a.settings, agent=replace(a.settings.agent, **agent))

    assert await Kernels(own, HostToken.of(own)).offer(b.request) == KernelOffer()
    assert not (a.folder / "kernels").exists()


async def test_a_pack_serves_several_hosts(a: Host, b: Host, tmp_path: Path) -> None:
    first = await a.kernels.offer(b.request)
    second = await a.kernels.offer(replace(b.request, host="c"))

    assert first.digest == second.digest
    assert first.proofs != second.proofs


def test_the_place_of_code_is_that_of_engine_weights_and_cache() -> None:
    places = {compile_caches.place_of(*paths) for paths in (("/e", "/w", ""), ("/e", "/x", ""), ("/e", "/w", "/c"))}

    assert len(places) == 3
    assert compile_caches.place_of("/e", "/w", "") in places
