"""The secrets that the roles write: on real files, with users of this machine in place of cortex's own."""

import grp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.platform import settings_file
from cortex.platform.keys import FleetToken, HostToken, host_file
from cortex.platform.settings import SettingsError
from tests.deploy.linted import ROOT

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root"), pytest.mark.long]

AGENTS, ROUTERS = "daemon", "games"
"""Two groups that every Linux has, as `cortex` and `cortex-router`."""
INVENTORY = """
[redis]
box ansible_host=10.0.0.9
[routers]
box
[agents]
box
gpu ansible_host=10.0.0.11 cortex_name=gpu-1
"""
PLAYBOOK = [
    {
        "hosts": "all",
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.import_role": {"name": "cortex", "tasks_from": "settings.yml"}},
        ],
    }
]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings of each machine in one of its name."""
    out = tmp_path_factory.mktemp("machines")
    program = out / "opt" / "0.1.0+test" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    for name in ("box", "gpu"):
        (out / name).mkdir(mode=0o755)
    (out / "inventory").write_text(INVENTORY)
    (out / "playbook.yml").write_text(json.dumps(PLAYBOOK))
    variables = {
        "cortex_prefix": str(out / "opt"), "cortex_version": "0.1.0+test",
        "cortex_etc": f"{out}/{{{{ inventory_hostname }}}}",
        "cortex_user": AGENTS, "cortex_router_user": ROUTERS, "ansible_python_interpreter": sys.executable,
        "cortex_fleet_token": "used", "cortex_fleet_token_former": "former",
        "cortex_redis_password": "p" * 16, "cortex_redis_admin_password": "a" * 16,
    }  # fmt: skip
    done = subprocess.run(
        ["ansible-playbook", "-i", str(out / "inventory"), str(out / "playbook.yml"), "-e", json.dumps(variables)],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return out


def readers(folder: Path) -> dict[str, str]:
    """Return, by file, the group beside root that may read it; * for everybody."""
    matches = {}
    for path in folder.iterdir():
        status = path.stat()
        assert (status.st_uid, status.st_mode & 0o133) == (0, 0), path
        matches[path.name] = "*" if status.st_mode & 0o004 else grp.getgrgid(status.st_gid).gr_name
    return matches


def test_what_routers_have_their_user_alone_may_read_and_hosts_have_none_of_it(machines: Path) -> None:
    of_router = {"fleet.token": ROUTERS, "redis-router.password": ROUTERS, "metrics.token": ROUTERS}
    of_all = {"redis.password": AGENTS, "cortex.toml": "*"}

    assert readers(machines / "box") == {**of_router, **of_all, "host.token": AGENTS}
    assert readers(machines / "gpu") == {**of_all, "host.token": AGENTS}


def test_each_host_has_its_own_token_for_every_token_of_the_fleet(machines: Path) -> None:
    assert (machines / "box" / "fleet.token").read_text() == "used\nformer\n"
    assert (machines / "box" / "host.token").read_text() == host_file(("used", "former"), "box")
    assert (machines / "gpu" / "host.token").read_text() == host_file(("used", "former"), "gpu-1")


def test_agents_start_with_the_settings_and_tokens_of_their_machine_and_routers_with_theirs(machines: Path) -> None:
    router, _ = settings_file.load(machines / "box" / "cortex.toml", {})
    host, _ = settings_file.load(machines / "gpu" / "cortex.toml", {})

    token = HostToken.of(host)

    sent = FleetToken(Path(router.token_file)).for_agent("gpu-1", "http://10.0.0.11:13131")
    assert token.opens(sent, "http://10.0.0.11:13131")
    assert host.agent.token_file == str(machines / "gpu" / "host.token")
    assert not host.token_file.startswith(str(machines))


def test_a_host_with_the_token_of_another_machine_does_not_start(machines: Path) -> None:
    host, _ = settings_file.load(
        machines / "gpu" / "cortex.toml", {"CORTEX_AGENT__TOKEN_FILE": f"{machines}/box/host.token"}
    )

    with pytest.raises(SettingsError, match="is the token of host 'box', and this is host 'gpu-1'"):
        HostToken.of(host)
