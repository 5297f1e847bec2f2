"""TLS between everybody: clients, router, agent; and a certificate that is renewed under them."""

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.xdist_group("security")


def write(authority: trustme.CA, folder: Path, name: str) -> dict[str, str]:
    """Write a certificate for loopback and its key, each in one step; return their paths."""
    made = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    for path, content in ((key, made.private_key_pem.bytes()), (cert, made.cert_chain_pems[0].bytes())):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    return {"cert": str(cert), "key": str(key)}


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return made


class TlsFleet(Fleet):
    """One agent and a router, both behind TLS."""

    def __init__(self, folder: Path, redis_url: str, authority: trustme.CA) -> None:
        router, agent = write(authority, folder, "router"), write(authority, folder, "agent")
        more = {"CORTEX_AGENT__TLS_CERT": agent["cert"], "CORTEX_AGENT__TLS_KEY": agent["key"]}
        super().__init__(folder, redis_url, fake("fake/one", "--answer", "one"), {"a": more})
        self.url = self.url.replace("http://", "https://")
        self.env |= {
            "CORTEX_URL": self.url,
            "CORTEX_CA_FILE": str(folder / "ca.pem"),
            "CORTEX_GATEWAY__TLS_CERT": router["cert"],
            "CORTEX_GATEWAY__TLS_KEY": router["key"],
        }
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=context)


@pytest.fixture
def fleet(tmp_path: Path, authority: trustme.CA) -> Iterator[TlsFleet]:
    with own_redis(tmp_path) as url:
        running = TlsFleet(tmp_path, url, authority)
        with running:
            yield running


def presented(fleet: TlsFleet) -> bytes:
    """Return the certificate that the router shows a new connection."""
    host, _, port = fleet.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=str(fleet.folder / "ca.pem"))
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def test_everything_is_served_by_tls_and_a_renewed_certificate_is_taken_while_it_runs(
    fleet: TlsFleet, authority: trustme.CA
) -> None:
    assert fleet.chat("fake/one").json()["choices"][0]["message"]["content"] == "one"
    assert fleet.records()["a"].address.startswith("https://")
    assert fleet.cli("fn", "ls").returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{fleet.url}/health", trust_env=False)  # nobody told it whom to trust

    before, pid = presented(fleet), fleet.processes["router"].pid
    (fleet.folder / "router.pem").write_text("half a certificate")
    eventually(lambda: "certificate_not_taken" in fleet.log("router"), what="a broken file to be noticed")
    broken = presented(fleet)
    write(authority, fleet.folder, "router")
    eventually(lambda: presented(fleet) != before, what="the renewed certificate")

    assert broken == before
    assert fleet.chat("fake/one").is_success
    assert (fleet.processes["router"].pid, fleet.processes["router"].poll()) == (pid, None)


def test_a_certificate_that_cannot_be_used_stops_a_router_before_it_listens(
    tmp_path: Path, authority: trustme.CA
) -> None:
    import subprocess

    from tests.support.stack import CORTEX

    (tmp_path / "m.toml").write_text("")
    pair, other = write(authority, tmp_path, "one"), write(authority, tmp_path, "two")
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "CORTEX_MODELS_CONFIG": str(tmp_path / "m.toml")}

    ended = subprocess.run(
        [*CORTEX, "router", "--tls-cert", pair["cert"], "--tls-key", other["key"]],
        env=env, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert ended.returncode == 1
    assert "cannot be used" in ended.stderr
