"""What an agent sends to its neighbours, by its routes behind the real listener."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import trustme
import uvicorn
from litestar import Litestar

from cortex.functions.selection import File
from cortex.functions.sources import Repo
from cortex.platform.agent.pace import Pace
from cortex.platform.agent.routes.offers import MOST_TRANSFERS, neighbours_route, offer_routes
from cortex.platform.agent_messages import Neighbour, Neighbours, Offers
from cortex.platform.serving import listener
from cortex.platform.weights import disk, neighbours
from cortex.platform.weights.neighbours import NeighbourClient
from cortex.platform.weights.store import Manifest, hub_cache, manifest_path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def a_download(cache: Path) -> Path:
    """Write a finished download of one file; return its blob."""
    folder = hub_cache(cache) / "models--org--m"
    blob, pointer = folder / "blobs" / DIGEST, folder / "snapshots" / "c0" / "m.gguf"
    for path in (blob, pointer):
        path.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    pointer.symlink_to(blob)
    source = Repo(repo="org/m", gguf=True)
    finished = Manifest(source=source, commit="c0", entry="m.gguf", files=(File("m.gguf", len(CONTENT)),), at=1.0)
    path = manifest_path(source, cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(finished))
    return blob


@asynccontextmanager
async def serving(cache: Path, mb_s: int = 1000, *, cert: str = "", key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """Serve the routes, without the guard."""
    looks = disk.looks()
    routes = [*offer_routes(cache, mb_s, looks), neighbours_route(cache / "neighbours.json", looks)]
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        app = Litestar(routes, openapi_config=None)
        server = uvicorn.Server(listener.config(app, f"127.0.0.1:{port}", cert=cert, key=key))
        task = asyncio.create_task(server.serve(sockets=[held]))
        scheme = "https" if cert else "http"
        async with httpx.AsyncClient(base_url=f"{scheme}://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            assert await listener.accepts("127.0.0.1", port, within_s=10)
            yield client
        server.should_exit = True
        await task


async def test_the_offers_list_each_file_and_send_its_bytes_from_an_offset(tmp_path: Path) -> None:
    a_download(tmp_path)
    async with serving(tmp_path) as http:
        offers = msgspec.json.decode((await http.get("/offers")).content, type=Offers)
        whole = await http.get(f"/offers/{DIGEST}")
        rest = await http.get(f"/offers/{DIGEST}", headers={"range": "bytes=1000-"})

    assert offers == Offers(weights={DIGEST: len(CONTENT)})
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert (rest.status_code, rest.content) == (206, CONTENT[1000:])
    assert rest.headers["content-range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"


@pytest.mark.parametrize(
    "name", ["0" * 64, DIGEST.upper(), DIGEST[:63], "..%2Fneighbours.json", "%2Fetc%2Fpasswd", "neighbours.json"]
)
async def test_a_name_that_is_no_offer_is_not_found(tmp_path: Path, name: str) -> None:
    a_download(tmp_path)
    (tmp_path / "neighbours.json").write_text("secret")
    async with serving(tmp_path) as http:
        answer = await http.get(f"/offers/{name}")

    assert answer.status_code == 404
    assert "secret" not in answer.text


async def test_an_offset_behind_the_end_is_not_found(tmp_path: Path) -> None:
    a_download(tmp_path)
    async with serving(tmp_path) as http:
        answer = await http.get(f"/offers/{DIGEST}", headers={"range": f"bytes={len(CONTENT) + 1}-"})

    assert answer.status_code == 404


async def test_a_host_that_may_send_nothing_offers_nothing(tmp_path: Path) -> None:
    a_download(tmp_path)
    async with serving(tmp_path, mb_s=0) as http:
        offers = msgspec.json.decode((await http.get("/offers")).content, type=Offers)
        answer = await http.get(f"/offers/{DIGEST}")

    assert (offers, answer.status_code) == (Offers(), 404)


async def test_more_transfers_than_the_limit_are_turned_away(tmp_path: Path) -> None:
    a_download(tmp_path)
    async with serving(tmp_path, mb_s=1) as http:
        held = [
            await http.send(http.build_request("GET", f"/offers/{DIGEST}"), stream=True) for _ in range(MOST_TRANSFERS)
        ]
        answer = await http.get(f"/offers/{DIGEST}")
        for each in held:
            await each.aclose()

    assert answer.status_code == 503


async def test_the_client_receives_what_the_routes_send(tmp_path: Path) -> None:
    a_download(tmp_path)
    received = bytearray()
    async with serving(tmp_path) as http:
        near = Neighbour(host="near", address=str(http.base_url).rstrip("/"), token="t")
        client = NeighbourClient((near,))
        (holder,) = await asyncio.to_thread(client.holders, DIGEST, len(CONTENT))
        await asyncio.to_thread(client.receive, holder, DIGEST, 500, len(CONTENT), received.extend)

    assert bytes(received) == CONTENT[500:]


async def test_with_tls_only_a_neighbour_with_a_certificate_of_the_fleets_authority_is_used(tmp_path: Path) -> None:
    a_download(tmp_path / "cache")
    for name in ("own", "other"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / f"{name}.ca"))
        if name == "own":
            certificate = authority.issue_cert("127.0.0.1")
            certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
            certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    holders = []
    async with serving(tmp_path / "cache", cert=str(tmp_path / "cert"), key=str(tmp_path / "key")) as http:
        near = Neighbour(host="near", address=str(http.base_url).rstrip("/"), token="t")
        for name in ("own", "other"):
            client = NeighbourClient((near,), str(tmp_path / f"{name}.ca"))
            holders.append(await asyncio.to_thread(client.holders, DIGEST, len(CONTENT)))
            client.close()

    assert holders == [[near], []]


async def test_the_neighbours_of_a_host_are_saved_in_a_private_file(tmp_path: Path) -> None:
    known = (Neighbour(host="b", address="http://b:1", token="t"),)
    async with serving(tmp_path) as http:
        answer = await http.put("/neighbours", content=msgspec.json.encode(Neighbours(hosts=known)))

    path = tmp_path / "neighbours.json"
    assert answer.json() == {"neighbours": 1}
    assert (neighbours.read(path), path.stat().st_mode & 0o777) == (known, 0o600)


def test_pieces_get_their_time_one_after_the_other() -> None:
    pace = Pace(100.0)

    assert [pace.reserve(50, 10.0), pace.reserve(50, 10.0), pace.reserve(50, 10.2)] == pytest.approx([0.0, 0.5, 0.8])
    assert pace.reserve(50, 100.0) == 0.0
