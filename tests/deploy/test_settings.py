"""The deployment's settings are documented, and the examples are valid inventories."""

import re

import pytest
import yaml

from tests.deploy.linted import ROOT

SETTINGS = ROOT / "inventory/group_vars/all/settings.yml"
ROLES = ("cortex", "monitoring")
SECRET = re.compile(r"token|password")
OWN = {  # internal: paths on a machine, and settings for tests
    "cortex_prefix", "cortex_etc", "cortex_state", "cortex_cache", "cortex_logs", "cortex_rollback",
    "cortex_router_options", "cortex_nvidia_driver", "cortex_vllm_install", "cortex_router_metrics_listen",
    "cortex_redis_host_user", "monitoring_packages", "monitoring_server", "monitoring_data",
}  # fmt: skip


def test_every_setting_is_documented() -> None:
    explained = set(re.findall(r"^# (\w+): ", SETTINGS.read_text(), re.MULTILINE))
    defaults = [yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text()) for role in ROLES]
    declared = {name for d in defaults for name in d if not SECRET.search(name)}

    assert explained - {"cortex_serial"} == declared - OWN  # defined by the playbook


@pytest.mark.parametrize(("example", "machines"), [("one-box", 1), ("five-hosts", 5)])
def test_an_example_has_a_machine_for_every_role(example: str, machines: int) -> None:
    groups = yaml.safe_load((ROOT / f"inventory/{example}.yml").read_text())["all"]["children"]

    assert len(groups["redis"]["hosts"]) == 1
    assert groups["routers"]["hosts"]
    assert groups["agents"]["hosts"]
    assert len({host for group in groups.values() for host in group["hosts"]}) == machines
