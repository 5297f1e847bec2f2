"""TLS between everybody: clients, router, agent; and a certificate that is renewed under them."""

import os
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

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


def test_everything_is_served_by_tls_and_a_renewed_certificate_is_taken_while_it_runs(hardened: Hardened) -> None:
    assert hardened.chat("fake/one").json()["choices"][0]["message"]["content"] == "one"
    assert hardened.records()["a"].address.startswith("https://")
    assert hardened.run("fn", "ls").code == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{hardened.url}/health", trust_env=False)  # nobody told it whom to trust

    before, pid = presented(hardened), hardened.processes["router"].pid
    (hardened.folder / "router.pem").write_text("half a certificate")
    eventually(lambda: "certificate_not_taken" in hardened.log("router"), what="a broken file to be noticed")
    broken = presented(hardened)
    write(hardened.authority, hardened.folder, "router")
    eventually(lambda: presented(hardened) != before, what="the renewed certificate")

    assert broken == before
    assert hardened.chat("fake/one").is_success
    assert (hardened.processes["router"].pid, hardened.processes["router"].poll()) == (pid, None)


def test_a_login_over_tls_gives_a_cookie_that_never_goes_out_in_the_clear(hardened: Hardened) -> None:
    with httpx.Client(base_url=hardened.url, verify=hardened.context, trust_env=False) as http:
        given = http.post("/status/login", data={"key": hardened.keys["admin"]})
        inside = http.get("/status")  # by the cookie alone
        left = http.post("/status/logout")
        outside = http.get("/status")

    attributes = given.headers["set-cookie"].lower().split("; ")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= set(attributes)
    assert (inside.status_code, outside.status_code) == (200, 303)
    assert "secure" in left.headers["set-cookie"].lower()


def test_a_certificate_that_cannot_be_used_stops_a_router_before_it_listens(tmp_path: Path) -> None:
    import subprocess

    from tests.support.stack import CORTEX

    authority = trustme.CA()
    (tmp_path / "m.toml").write_text("")
    pair, other = write(authority, tmp_path, "one"), write(authority, tmp_path, "two")
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "CORTEX_MODELS_CONFIG": str(tmp_path / "m.toml")}

    ended = subprocess.run(
        [*CORTEX, "router", "--tls-cert", pair["cert"], "--tls-key", other["key"]],
        env=env, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert ended.returncode == 1
    assert "cannot be used" in ended.stderr
