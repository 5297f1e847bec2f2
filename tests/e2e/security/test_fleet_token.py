"""The fleet's token is changed while it serves: nothing restarts, and no request is lost."""

from pathlib import Path

import pytest

from tests.support.catalogues import fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.xdist_group("security")


def test_a_token_is_changed_without_a_restart_and_the_old_one_ends(tmp_path: Path) -> None:
    catalogue = fake("fake/before") + fake("fake/after")
    with own_redis(tmp_path) as url, Fleet(tmp_path, url, catalogue, {"a": {}}) as fleet:
        path, agent = tmp_path / "token", fleet.records()["a"].address

        def accepted(token: str) -> bool:
            answer = fleet.http.get(f"{agent}/record", headers={"authorization": f"Bearer {token}"})
            return answer.status_code == 200

        before = [fleet.chat("fake/before").status_code]
        path.write_text(f"{TOKEN}\nfresh\n")
        eventually(lambda: accepted("fresh"), what="the new token to be accepted")
        path.write_text(f"fresh\n{TOKEN}\n")
        during = [fleet.chat(name).status_code for name in ("fake/before", "fake/after") for _ in range(3)]
        assert fleet.http.post("/admin/functions/fake%2Fbefore/cool").is_success
        path.write_text("fresh\n")
        eventually(lambda: not accepted(TOKEN), what="the old token to be refused")
        after = [fleet.chat(name).status_code for name in ("fake/before", "fake/after")]

        assert {*before, *during, *after} == {200}
        assert all(p.poll() is None for p in fleet.processes.values())
