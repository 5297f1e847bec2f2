"""What the deployment decides about a fleet as a whole."""

import importlib.util
from typing import Any

import pytest

from tests.deploy.linted import ROOT

_spec = importlib.util.spec_from_file_location("cortex_fleet", ROOT / "roles/cortex/filter_plugins/cortex_fleet.py")
assert _spec is not None and _spec.loader is not None
fleet = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fleet)

WELL = {"record": "ok"}


def host(name: str, *started: tuple[str, float]) -> dict[str, Any]:
    return {"name": name, "instances": [{"function": f, "created": at} for f, at in started]}


def test_the_old_token_goes_when_all_hosts_report_and_nothing_older_runs() -> None:
    seen = {"hosts": [host("a", ("new", 101.0)), host("b")], "silent": []}

    assert fleet.cortex_token_holders(seen, WELL, ["a", "b"], "100") == []


@pytest.mark.parametrize(
    ("seen", "health", "since", "reason"),
    [
        ({"hosts": [host("a"), host("b", ("old", 99.0))]}, WELL, "100", "old was started under the old token"),
        ({"hosts": [host("a")], "silent": [host("b")]}, WELL, "100", "host b does not report"),
        ({"hosts": [host("a")]}, WELL, "100", "host b does not report"),
        ({"hosts": []}, {"record": "away"}, "100", "its record is 'away': start Redis"),
        ({"hosts": [host("a"), host("b")], "silent": [host("c")]}, WELL, "100", "host c does not report"),
        ({"hosts": [host("a"), host("b")]}, WELL, "", "not every machine uses the new token yet"),
    ],
    ids=["worker", "silent", "gone", "no Redis", "not in the inventory", "interrupted"],
)
def test_the_old_token_stays_while_something_may_need_it(
    seen: dict[str, Any], health: dict[str, str], since: str, reason: str
) -> None:
    (text,) = fleet.cortex_token_holders(seen, health, ["a", "b"], since)

    assert reason in text


def test_machines_that_share_a_name_or_an_address_are_found() -> None:
    machines = [
        {"inventory_hostname": "a", "ansible_host": "10.0.0.1"},
        {"inventory_hostname": "b", "ansible_host": "10.0.0.2", "cortex_name": "a"},
        {"inventory_hostname": "c", "ansible_host": "10.0.0.2", "cortex_address": "10.0.0.1"},
    ]

    assert fleet.cortex_shared(machines, ["cortex_name", "inventory_hostname"]) == ["cortex_name a"]
    assert fleet.cortex_shared(machines, ["cortex_address", "ansible_host"]) == ["cortex_address 10.0.0.1"]
