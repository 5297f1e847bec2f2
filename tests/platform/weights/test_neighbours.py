"""Weights from other hosts of the fleet: each fault leaves the file complete, from another source."""

import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from cortex.functions.sources import source_of
from cortex.functions.spec import Engine, Function
from cortex.platform.agent_messages import Neighbour, Neighbours, Remove
from cortex.platform.weights import inventory, neighbours, offers
from cortex.platform.weights import store as weights
from cortex.platform.weights.hub import CHUNK, Hub
from cortex.platform.weights.neighbours import NeighbourClient
from cortex.platform.weights.origins import HUB, Origins
from tests.support.hub import FakeHub, fake_hub
from tests.support.neighbour import NeighbourDouble, neighbour_double

FILE = random.Random(1).randbytes(3_000_000)
TARGET = Function(id="m", engine=Engine.LLAMACPP, source="org/m", quant="Q4_K_M")
NAME = "m-Q4_K_M.gguf"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        running.repos["org/m"] = {"README.md": b"hello", NAME: FILE}
        yield running


@pytest.fixture
def near() -> Iterator[NeighbourDouble]:
    with neighbour_double("near") as running:
        running.offer(FILE)
        yield running


def fetch(hub: FakeHub, cache: Path, *hosts: Neighbour) -> dict[str, int]:
    """Fetch the weights, check them, and return how many bytes came from where."""
    client = NeighbourClient(hosts)
    repository = Hub(weights.hub_cache(cache), endpoint=hub.url, neighbours=client)
    try:
        weights.fetch(source_of(TARGET), cache, repository, lambda _: None)
    finally:
        client.close()
    local = weights.find(TARGET, cache)
    assert local is not None
    assert Path(local.path).read_bytes() == FILE
    (stored,) = inventory.in_cache(cache)
    return stored.origins


def test_a_file_that_a_neighbour_has_is_not_fetched_from_the_hub(
    hub: FakeHub, near: NeighbourDouble, tmp_path: Path
) -> None:
    origins = fetch(hub, tmp_path, near.neighbour)

    assert origins == {"near": len(FILE)}
    assert hub.sent == {}


def test_the_hub_goes_on_where_the_neighbour_broke_off(hub: FakeHub, near: NeighbourDouble, tmp_path: Path) -> None:
    near.cut_after = 2 * CHUNK + 1000

    with capture_logs() as lines:
        origins = fetch(hub, tmp_path, near.neighbour)

    assert origins["near"] >= 2 * CHUNK
    assert origins == {"near": origins["near"], HUB: len(FILE) - origins["near"]}
    assert hub.sent == {NAME: origins[HUB]}
    assert [(e["event"], e["neighbour"]) for e in lines] == [("neighbour_ignored", "near")]


def test_another_neighbour_goes_on_before_the_hub(hub: FakeHub, near: NeighbourDouble, tmp_path: Path) -> None:
    with neighbour_double("far") as far:
        far.offer(FILE)
        near.cut_after = far.cut_after = 2 * CHUNK

        origins = fetch(hub, tmp_path, near.neighbour, far.neighbour)

    assert origins == {"near": 2 * CHUNK, "far": 2 * CHUNK, HUB: len(FILE) - 4 * CHUNK}
    assert sorted([*near.transfers, *far.transfers]) == [0, 2 * CHUNK]


def test_a_cut_fetch_goes_on_at_a_neighbour(hub: FakeHub, near: NeighbourDouble, tmp_path: Path) -> None:
    digest = hashlib.sha256(FILE).hexdigest()
    partial = weights.hub_cache(tmp_path) / "models--org--m" / "blobs" / f"{digest}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(FILE[:1_000_000])
    Origins(tmp_path).begin(digest, 0, HUB)

    origins = fetch(hub, tmp_path, near.neighbour)

    assert origins == {HUB: 1_000_000, "near": 2_000_000}
    assert (near.transfers, hub.sent) == ([1_000_000], {})


def test_bytes_without_the_hash_come_from_the_hub_at_the_second_attempt(
    hub: FakeHub, near: NeighbourDouble, tmp_path: Path
) -> None:
    digest = near.offer(FILE)
    near.files[digest] = bytes(len(FILE))
    client = NeighbourClient((near.neighbour,))
    repository = Hub(weights.hub_cache(tmp_path), endpoint=hub.url, neighbours=client)

    with pytest.raises(weights.HubUnavailable, match="corrupt"):
        weights.fetch(source_of(TARGET), tmp_path, repository, lambda _: None)
    weights.fetch(source_of(TARGET), tmp_path, repository, lambda _: None)

    (stored,) = inventory.in_cache(tmp_path)
    assert Path(stored.path).read_bytes() == FILE
    assert (stored.origins, near.transfers) == ({HUB: len(FILE)}, [0])


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 404},
        {"status": 503},
        {"status": 200},
        {"offers": b"no json"},
        {"offers": b'{"weights": []}'},
        {"offers": b'{"weights": {}}'},
        {"cut_after": 0},
    ],
)
def test_a_faulty_neighbour_costs_nothing(
    hub: FakeHub, near: NeighbourDouble, tmp_path: Path, fault: dict[str, object]
) -> None:
    for name, value in fault.items():
        setattr(near, name, value)

    assert fetch(hub, tmp_path, near.neighbour) == {HUB: len(FILE)}


def test_neighbours_that_are_gone_or_have_no_address_cost_nothing(hub: FakeHub, tmp_path: Path) -> None:
    gone = Neighbour(host="gone", address="http://127.0.0.1:1", token="x")
    nowhere = Neighbour(host="nowhere", address="http://[", token="x")

    assert fetch(hub, tmp_path, gone, nowhere) == {HUB: len(FILE)}


def test_a_wrong_token_gets_nothing(hub: FakeHub, near: NeighbourDouble, tmp_path: Path) -> None:
    other = Neighbour(host="near", address=near.address, token="another")

    assert fetch(hub, tmp_path, other) == {HUB: len(FILE)}


def test_with_tls_a_neighbour_without_it_is_not_called(near: NeighbourDouble, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca"))
    client = NeighbourClient((near.neighbour,), str(tmp_path / "ca"))

    assert client.holders(near.offer(FILE), len(FILE)) == []


def test_a_neighbour_below_the_least_rate_is_given_up(
    hub: FakeHub, near: NeighbourDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "PACE_S", 0.0)
    monkeypatch.setattr(neighbours, "PACE_BYTES", 2000)
    monkeypatch.setattr(neighbours, "CHUNK", 1000)

    origins = fetch(hub, tmp_path, near.neighbour)

    assert origins == {"near": 1000, HUB: len(FILE) - 1000}


def test_a_neighbour_is_logged_once_in_a_fetch(near: NeighbourDouble) -> None:
    client = NeighbourClient((near.neighbour,))

    with capture_logs() as lines:
        threads = [threading.Thread(target=client.give_up, args=(near.neighbour, "it broke off")) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(lines) == 1
    assert client.holders(near.offer(FILE), len(FILE)) == []


def test_only_hashed_files_of_finished_downloads_are_offered(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "by-hand" / "org" / "m").mkdir(parents=True)
    (tmp_path / "by-hand" / "org" / "m" / "x.gguf").write_bytes(FILE)
    assert offers.sizes(tmp_path) == {}

    weights.fetch(source_of(TARGET), tmp_path, Hub(weights.hub_cache(tmp_path), endpoint=hub.url), lambda _: None)

    assert offers.sizes(tmp_path) == {hashlib.sha256(FILE).hexdigest(): len(FILE)}


def test_a_link_that_leaves_the_cache_is_not_offered(hub: FakeHub, tmp_path: Path) -> None:
    cache, secret = tmp_path / "cache", tmp_path / hashlib.sha256(FILE).hexdigest()
    secret.write_bytes(b"secret")
    weights.fetch(source_of(TARGET), cache, Hub(weights.hub_cache(cache), endpoint=hub.url), lambda _: None)
    (pointer,) = inventory.pointers(cache)
    pointer.unlink()
    pointer.symlink_to(secret)

    assert offers.shared_files(cache) == {}


def test_the_file_with_the_neighbours_is_read_back_and_a_broken_one_is_none(tmp_path: Path) -> None:
    path = neighbours.neighbours_file(str(tmp_path))
    known = (Neighbour(host="b", address="http://b:1", token="t"),)
    assert neighbours.read(path) == ()

    path.write_bytes(neighbours.encode(Neighbours(hosts=known)))
    read = neighbours.read(path)
    path.write_bytes(b"{")

    assert (read, neighbours.read(path)) == (known, ())


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ("", {HUB: 100}),
        ("0 a\n", {"a": 100}),
        ("0 a\n40 \n", {"a": 40, HUB: 60}),
        ("0 a\n40 b\n30 \n", {"a": 30, HUB: 70}),
        ("0 a\n100 \n", {"a": 100}),
        ("what\n", {HUB: 100}),
    ],
)
def test_origins_are_counted_by_where_each_piece_begins(tmp_path: Path, notes: str, expected: dict[str, int]) -> None:
    folder = tmp_path / "weights" / "origins"
    folder.mkdir(parents=True)
    (folder / "e").write_text(notes)

    assert Origins(tmp_path).bytes_of("e", 100) == expected


def test_the_notes_of_removed_weights_are_removed(hub: FakeHub, near: NeighbourDouble, tmp_path: Path) -> None:
    fetch(hub, tmp_path, near.neighbour)
    assert list((tmp_path / "weights" / "origins").iterdir()) != []

    inventory.remove(tmp_path, inventory.in_cache(tmp_path), Remove(names=("org/m:Q4_K_M",)), ())

    assert list((tmp_path / "weights" / "origins").iterdir()) == []
