"""Images given as addresses: fetched from public ones, never from where only this network can reach."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from cortex.router.dialects.core.errors import BadRequest
from cortex.router.request import remote_images
from cortex.router.request.remote_images import NotFetched, PublicOnly, RemoteImages, is_public
from tests.support.stack import free_port

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "localhost", "", "2130706433",
        "fec0::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "5f00::1", "3fff::1", "192.88.99.1", "64:ff9b:1::1", "100::1",
        "2001::1", "2001:20::1", "2001:db8::1", "4000::1", "fd00:ec2::254", "192.0.0.8", "192.0.2.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.1", "240.0.0.1", "0.1.2.3", "224.0.0.251", "::ffff:192.88.99.1", "127.1", "0x7f.1",
        "fe80::1%1", "2606:2800::1%eth0:1::",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34",
        "1.1.1.1", "223.5.5.5", "100.63.255.255", "172.32.0.1", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e",
    ],
)  # fmt: skip
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


class Says(AbstractResolver):
    """Says of every name the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=2, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


async def test_of_a_names_addresses_only_the_public_are_used() -> None:
    result = await PublicOnly(Says("10.0.0.1", "93.184.216.34")).resolve("example.org", 80)

    assert [one["host"] for one in result] == ["93.184.216.34"]
    with pytest.raises(NotFetched, match="not a public one"):
        await PublicOnly(Says("127.0.0.1")).resolve("rebound.example.org", 80)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png", "https://[::1]/x.png", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1:80/",
        "http://2130706433/", "http://localhost/x.png", "http://[::ffff:7f00:1]/", "http://127.1/", "http://0/",
        "file:///etc/passwd", "http:///x",
    ],
)  # fmt: skip
async def test_what_only_this_network_reaches_is_not_fetched(url: str) -> None:
    images = RemoteImages()
    try:
        with pytest.raises((NotFetched, ValueError, OSError)):
            await images.fetch(url)
    finally:
        await images.close()


@asynccontextmanager
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A server of images. For it alone this machine counts as public: nothing else may be reached from tests."""

    async def image(request: web.Request) -> web.Response:
        return web.Response(body=PNG, content_type="image/png")

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    async def away(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.query["to"])

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=bytes(remote_images.MOST_BYTES + 1), content_type="image/png")

    app = web.Application()
    for path, handler in (("/a.png", image), ("/page", page), ("/away", away), ("/large", large)):
        app.router.add_get(path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    monkeypatch.setattr(remote_images, "is_public", lambda address: address == "127.0.0.1")
    try:
        yield f"http://images.test:{port}"
    finally:
        await runner.cleanup()


def requests(url: str) -> dict[str, dict[str, Any]]:
    """The ways to give an image in each dialect."""
    source = {"type": "image", "source": {"type": "url", "url": url}}
    return {
        "chat": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        "responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        "messages": {"messages": [{"role": "user", "content": [source]}]},
    }


async def inlined(body: dict[str, Any]) -> Any:
    images = RemoteImages(Says("127.0.0.1"))
    try:
        return json.loads(await images.inline(json.dumps(body).encode()))
    finally:
        await images.close()


async def test_images_become_data_in_every_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = base64.b64encode(PNG).decode()
    url = f"data:image/png;base64,{encoded}"
    async with server(monkeypatch) as root:
        matches = {dialect: await inlined(body) for dialect, body in requests(f"{root}/away?to=/a.png").items()}

    assert matches["chat"]["messages"][0]["content"][0]["image_url"] == {"url": url}
    assert matches["responses"]["input"][0]["content"][0]["image_url"] == url
    assert matches["messages"]["messages"][0]["content"][0]["source"] == {
        "type": "base64", "media_type": "image/png", "data": encoded,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/page", "not an image"),
        ("/nowhere", "answered 404"),
        ("/large", "larger than 20 MiB"),
        ("/away?to=/away?to=/a.png%23", "more than 0 times"),
        ("/away?to=http://10.0.0.1/a.png", "not a public one"),
        ("/away?to=file:///etc/passwd", "only http and https"),
    ],
)
async def test_what_is_not_fetched_is_refused_with_its_field(
    monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    monkeypatch.setattr(remote_images, "MOST_HOPS", 0 if "times" in why else 3)
    async with server(monkeypatch) as root:
        with pytest.raises(BadRequest) as refused:
            await inlined(requests(root + path)["chat"])

    assert refused.value.fault().param == "messages[0].content[0]"
    assert why in refused.value.fault().message


async def test_a_request_without_remote_images_is_left_as_it_is() -> None:
    images = RemoteImages()
    for body in (
        b'{ "a": "see http://example.org" }',
        b"{",
        b"\xff http",
        b'{"image_url": "data:image/png;base64,AA"}',
    ):
        assert await images.inline(body) is body


async def test_there_is_an_end_to_how_many_are_fetched() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}
    with pytest.raises(BadRequest, match="no more than 16"):
        await inlined({"messages": [{"role": "user", "content": [part] * 17}]})
