"""A client's forwarded address counts only behind a trusted proxy."""

import json

import httpx
import pytest

from tests.e2e.security.hardened import Hardened
from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def turned_away(log: str, mark: str) -> str:
    """Return the client address in a router's log for a path."""
    lines = [json.loads(line) for line in log.splitlines() if mark in line]
    return str(lines[-1]["client"]) if lines else ""


@pytest.mark.parametrize("output", ["203.0.113.9", "203.0.113.9, 127.0.0.1", '203.0.113.9"}\n{"event":"x"', "[::1]:80"])
def test_a_forwarded_address_of_an_untrusted_client_is_ignored(keyed: Keyed, output: str) -> None:
    mark = f"/v1/models/untrusted-{abs(hash(output))}"
    headers = {
        "x-forwarded-for": output.replace("\n", " "),
        "x-forwarded-proto": "https",
        "forwarded": f"for={output[:5]}",
    }

    def code() -> str:
        httpx.get(f"{keyed.url}{mark}", headers=headers, trust_env=False)
        return turned_away(keyed.stack.log("router"), mark)

    assert eventually(code, what="the refusal in the log") == "127.0.0.1"


@pytest.mark.parametrize(
    ("output", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.66, 203.0.113.9", "203.0.113.9"),  # what came to the proxy with the request is a client's word
        ("", "127.0.0.1"),
    ],
)
def test_only_the_address_added_by_a_trusted_proxy_is_used(hardened: Hardened, output: str, client: str) -> None:
    mark = f"/v1/models/trusted-{output.count('.')}"
    headers = {"authorization": "Bearer unknown", **({"x-forwarded-for": output} if output else {})}

    def code() -> str:
        hardened.http.get(mark, headers=headers)
        return turned_away(hardened.log("router"), mark)

    assert eventually(code, what="the refusal in the log") == client
