"""The fleet's token and each host's own are rotated under load without a restart or a lost request."""

import pytest
import redis

from cortex.platform.keys import fleet_mark
from tests.e2e.security.hardened import Hardened
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


@pytest.mark.long
def test_a_token_is_rotated_without_a_restart(hardened: Hardened) -> None:
    old = hardened.token

    def accepted(token: str) -> bool:
        return hardened.agent("GET", "/record", token=token).status_code == 200

    before = [hardened.chat("fake/one").status_code]
    hardened.write_tokens(old, "fresh-token-77c1")
    eventually(lambda: accepted("fresh-token-77c1"), what="the new token to be accepted")
    hardened.write_tokens("fresh-token-77c1", old)
    with redis.Redis.from_url(hardened.record.admin_url, decode_responses=True) as record:
        mark = fleet_mark("fresh-token-77c1")
        eventually(lambda: record.sismember("cortex:fleet", mark), what="the record to bear the new token's mark")
    during = [hardened.chat(name).status_code for name in ("fake/one", "fake/after") for _ in range(3)]
    assert hardened.http.post("/admin/functions/fake%2Fone/cool").is_success
    hardened.write_tokens("fresh-token-77c1")
    eventually(lambda: not accepted(old), what="the old token to be refused")
    after = [hardened.chat(name).status_code for name in ("fake/one", "fake/after")]

    assert {*before, *during, *after} == {200}
    assert all(p.poll() is None for p in hardened.processes.values())
