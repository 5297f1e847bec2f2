"""TLS between clients, router and agent, and a certificate that is renewed while they run."""

import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from cortex.platform.serving import listener
from cortex.platform.settings import SettingsError
from tests.e2e.security.hardened import Hardened, write
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def presented(hardened: Hardened) -> bytes:
    """Return the certificate that the router shows a new connection."""
    host, _, port = hardened.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=str(hardened.folder / "ca.pem"))
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def test_with_tls_a_renewed_certificate_is_loaded_without_a_restart(hardened: Hardened) -> None:
    assert hardened.chat("fake/one").json()["choices"][0]["message"]["content"] == "one"
    assert hardened.records()["a"].address.startswith("https://")
    assert hardened.run("fn", "ls").code == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{hardened.url}/health", trust_env=False)  # without the authority

    before, pid = presented(hardened), hardened.processes["router"].pid
    (hardened.folder / "router.pem").write_text("half a certificate")
    eventually(lambda: "certificate_rejected" in hardened.log("router"), what="a broken file to be noticed")
    broken = presented(hardened)
    write(hardened.authority, hardened.folder, "router")
    eventually(lambda: presented(hardened) != before, what="the renewed certificate")

    assert broken == before
    assert hardened.chat("fake/one").is_success
    assert (hardened.processes["router"].pid, hardened.processes["router"].poll()) == (pid, None)


def test_a_login_over_tls_sets_a_secure_cookie(hardened: Hardened) -> None:
    with httpx.Client(base_url=hardened.url, verify=hardened.context, trust_env=False) as http:
        answer = http.post("/status/login", data={"key": hardened.keys["admin"]})
        inside = http.get("/status")  # by the cookie alone
        left = http.post("/status/logout")
        outside = http.get("/status")

    attributes = answer.headers["set-cookie"].lower().split("; ")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= set(attributes)
    assert answer.headers["set-cookie"].startswith("__Host-")
    assert hardened.keys["admin"] not in answer.headers["set-cookie"]
    assert (inside.status_code, outside.status_code) == (200, 303)
    assert "secure" in left.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "pair", [("one.pem", "two.key"), ("one.pem", ""), ("none.pem", "one.key"), ("one.key", "one.key")]
)
def test_an_unusable_certificate_prevents_the_start(tmp_path: Path, pair: tuple[str, str]) -> None:
    authority = trustme.CA()
    write(authority, tmp_path, "one")
    write(authority, tmp_path, "two")
    cert, key = (str(tmp_path / name) if name else "" for name in pair)

    with pytest.raises(SettingsError):
        listener.config("app:app", "127.0.0.1:1", cert=cert, key=key)
    listener.config("app:app", "127.0.0.1:1", cert=str(tmp_path / "one.pem"), key=str(tmp_path / "one.key"))
