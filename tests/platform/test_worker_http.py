"""Workers' answers are read within bounds, unpacked if compressed, and rejected if unreadable."""

import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.platform import worker_http
from cortex.platform.record import Instance
from cortex.platform.worker_http import PIECE_BYTES, Unpacker, Unreadable
from tests.support.factories import an_instance
from tests.support.servers import serving

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RAW = zlib.compressobj(wbits=-15)
PACKED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "gzip"),
    "members": (lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:]), "gzip"),
    "padded": (lambda data: gzip.compress(data) + bytes(20), "x-gzip"),
    "zlib": (zlib.compress, "deflate"),
    "bare": (lambda data: RAW.copy().compress(data) + _flushed(data), "deflate"),
}


def _flushed(data: bytes) -> bytes:
    packer = RAW.copy()
    packer.compress(data)
    return packer.flush()


def unpacked(wire: bytes, encoding: str, step: int) -> bytes:
    unpacker = Unpacker(encoding)
    parts = [piece for at in range(0, len(wire), step) for piece in unpacker.feed(wire[at : at + step])]
    unpacker.close()
    return b"".join(parts)


@given(st.binary(max_size=2000), st.sampled_from(sorted(PACKED)), st.integers(1, 500))
def test_a_compressed_body_in_any_chunks_is_unpacked(data: bytes, kind: str, step: int) -> None:
    pack, encoding = PACKED[kind]

    assert unpacked(pack(data), encoding, step) == data


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_highly_compressed_body_is_unpacked_in_small_pieces(encoding: str) -> None:
    data = bytes(8 << 20)
    wire = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)

    pieces = list(Unpacker(encoding).feed(wire))

    assert max(map(len, pieces)) <= PIECE_BYTES
    assert sum(map(len, pieces)) == len(data)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_truncated_compressed_body_is_unreadable(encoding: str) -> None:
    wire = gzip.compress(b"hello" * 100) if encoding == "gzip" else zlib.compress(b"hello" * 100)

    with pytest.raises(Unreadable, match="too early"):
        unpacked(wire[:-3], encoding, 7)


@given(st.binary(min_size=2, max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_unpacked_or_unreadable(wire: bytes, encoding: str) -> None:
    try:
        result = unpacked(wire, encoding, 5)
    except Unreadable:
        return
    assert len(result) <= 1100 * len(wire)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with worker_http.session() as session:
        yield session


def answering(body: bytes, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers=headers)

    return handler


async def without_end(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b"x" * 4096)


@pytest.mark.parametrize("handler", [without_end, answering(b"x" * 2000)], ids=["endless", "announced"])
async def test_a_whole_body_over_the_limit_is_unreadable(http: aiohttp.ClientSession, handler: Handler) -> None:
    async with serving(handler) as url, http.get(url) as response:
        with pytest.raises(Unreadable, match="longer"):
            await worker_http.whole(response, 1000)


async def test_only_the_beginning_of_an_endless_error_is_read(http: aiohttp.ClientSession) -> None:
    async with serving(without_end) as url, http.get(url) as response:
        assert await worker_http.beginning(response, 5000) == b"x" * 5000


@pytest.mark.parametrize("named", ["br", "zstd", "gzip, gzip", "odd" * 50])
async def test_an_unknown_encoding_is_unreadable_and_the_error_is_short(
    http: aiohttp.ClientSession, named: str
) -> None:
    async with serving(answering(b"x", **{"Content-Encoding": named})) as url, http.get(url) as response:
        with pytest.raises(Unreadable, match="it is compressed") as raised:
            await worker_http.whole(response)

    assert len(str(raised.value)) < 120


# Proofs.


def a_worker(models: bytes, *, key: str = "", refused: int = 401) -> Handler:
    """A worker that lists these models to clients with its key."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            return web.Response(status=refused)
        return web.Response(body=models)

    return handler


def without_list(health: int) -> Handler:
    """A program without `/v1/models`."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=health if request.path == "/health" else 404)

    return handler


F = b'{"data": [{"id": "f"}]}'
"""A list with the function of the instance."""


def at(url: str, server: str = "command") -> Instance:
    return an_instance(function="f", url=url, server=server)


@pytest.mark.parametrize(
    ("handler", "serves"),
    [
        (a_worker(F), True),
        (a_worker(F, key="right"), True),
        (a_worker(F, key="other"), False),
        (a_worker(F, key="other", refused=403), False),
        (a_worker(b'{"data": [{"id": "g"}]}'), False),
        (a_worker(b"<html>"), False),
        (a_worker(b"[" * 50_000), False),
        (without_end, False),
        (without_list(health=200), True),
        (without_list(health=500), False),
        (answering(F, **{"Content-Encoding": "br"}), False),
    ],
    ids=["open", "right-key", "401", "403", "other-model", "html", "deep", "endless", "no-list", "no-list-ill", "br"],
)
async def test_a_worker_is_verified_by_its_key_and_its_model(
    http: aiohttp.ClientSession, handler: Handler, serves: bool
) -> None:
    async with serving(handler) as url:
        assert await worker_http.serves(http, at(url), "right") is serves


async def test_only_a_command_may_have_no_list(http: aiohttp.ClientSession) -> None:
    async with serving(without_list(health=200)) as url:
        assert not await worker_http.serves(http, at(url, "llama-server"), "right")


async def test_a_worker_that_lists_another_name_is_verified_by_that_name(http: aiohttp.ClientSession) -> None:
    async with serving(a_worker(b'{"data": [{"id": "tts-1"}]}')) as url:
        named = replace(at(url), served_name="tts-1")

        assert await worker_http.serves(http, named, "right")
        assert not await worker_http.serves(http, at(url), "right")


@pytest.mark.parametrize(
    ("server", "status", "refuses"),
    [("command", 401, True), ("command", 403, True), ("llama-server", 401, False), ("llama-server", 403, True)],
)
async def test_a_401_of_a_server_with_an_open_model_list_is_about_the_key(
    http: aiohttp.ClientSession, server: str, status: int, refuses: bool
) -> None:
    async with serving(a_worker(F)) as url:
        assert await worker_http.refuses_request(http, at(url, server), "right", status) is refuses


@pytest.mark.parametrize(("status", "well"), [(200, True), (503, False), (302, False)])
async def test_a_worker_with_a_passing_health_check_is_well(
    http: aiohttp.ClientSession, status: int, well: bool
) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "/"})

    async with serving(handler) as url:
        assert await worker_http.is_well(http, at(url), "key") is well


async def test_an_unreachable_worker_is_not_well(http: aiohttp.ClientSession) -> None:
    async with serving(without_end) as url:
        instance = at(url)

    assert not await worker_http.is_well(http, instance, "key")
