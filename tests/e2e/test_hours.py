"""Functions that come up without a request: in their hours, and as a baseline in room that nothing else wants."""

from pathlib import Path

import pytest

from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually, own_redis

pytestmark = [pytest.mark.xdist_group("hours"), pytest.mark.long]

CATALOGUE = (
    fake("office", warm="00:00-24:00 UTC", vram_mb=4_000, idle_after_s=1)
    + fake("baseline", baseline=True, vram_mb=12_000, idle_after_s=1)
    + fake("large", vram_mb=14_000, idle_after_s=1)
)


def test_hours_and_a_baseline_start_functions_and_a_baseline_leaves_for_a_request_and_comes_back(
    tmp_path: Path,
) -> None:
    with own_redis(tmp_path) as redis_url:
        stack = Stack(tmp_path, CATALOGUE, env={"CORTEX_REDIS_URL": redis_url}, more=("--devices", "1x24GB"))
        try:
            for name in ("office", "baseline"):
                stack.until(name, "ready")
            first = stack.instance("baseline")["id"]
            office = stack.instance("office")
            shown = stack.cli("fn", "show", "office").stdout

            assert stack.chat("large").status_code == 200
            assert stack.state("baseline") != "ready"

            eventually(lambda: stack.state("baseline") == "ready", within_s=30, what="the baseline to be back")
            assert stack.state("large") == "cold"
            assert stack.instance("baseline")["id"] != first
            assert (stack.instance("office")["id"], office["reap_at"]) == (office["id"], None)
            assert "at least 1 kept warm in these hours: 00:00-24:00 UTC" in shown

            stack.models.write_text(CATALOGUE.replace("00:00-24:00 UTC", "00:00-24:00 Europe/Sofa"))
            eventually(lambda: "did you mean 'Europe/Sofia'?" in stack.http.get("/health").text, what="the error")
        finally:
            stack.end()
