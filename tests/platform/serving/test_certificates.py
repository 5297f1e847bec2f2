"""A renewed certificate reaches new handshakes of a listener; an invalid pair changes nothing."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from cortex.platform.serving import certificates

AUTHORITY = trustme.CA()


class UnchangedContext(ssl.SSLContext):
    """A context in use: a load into it would leave concurrent handshakes without a key."""

    sealed = False

    def load_cert_chain(self, *args: Any, **options: Any) -> None:
        assert not self.sealed
        super().load_cert_chain(*args, **options)


def write(folder: Path, *names: str) -> bytes:
    """Write a new certificate, its key, or both; return the certificate in DER."""
    pair = AUTHORITY.issue_cert("127.0.0.1", "localhost")
    if "cert" in names:
        pair.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    if "key" in names:
        pair.private_key_pem.write_to_path(str(folder / "key"))
    return ssl.PEM_cert_to_DER_cert(pair.cert_chain_pems[0].bytes().decode())


def presented(context: ssl.SSLContext, name: str) -> bytes:
    """Return the certificate that a handshake in memory shows a client."""
    client = ssl.create_default_context()
    AUTHORITY.configure_trust(client)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for side in sides * 2:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return sides[0].getpeercert(binary_form=True) or b""


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])  # an address is sent without a server name
async def test_a_renewed_pair_reaches_new_handshakes_and_half_a_pair_does_not(tmp_path: Path, name: str) -> None:
    first = write(tmp_path, "cert", "key")
    cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
    context = UnchangedContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.sealed = True
    looks: asyncio.Queue[None] = asyncio.Queue()

    async def pause() -> None:
        looks.task_done()
        await looks.get()

    looks.put_nowait(None)
    looks.get_nowait()
    task = asyncio.create_task(certificates.follow(context, cert, key, pause=pause))

    async def look() -> bytes:
        looks.put_nowait(None)
        await looks.join()
        return presented(context, name)

    await looks.join()
    assert await look() == first
    write(tmp_path, "key")
    assert await look() == first
    second = write(tmp_path, "cert", "key")
    assert await look() == second
    (tmp_path / "cert").write_text("half a certificate")
    assert await look() == second
    third = write(tmp_path, "cert", "key")
    assert await look() == third
    task.cancel()
