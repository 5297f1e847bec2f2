"""What the deployment writes: units that systemd finds nothing wrong with and that close what they do not need."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.platform import settings

ROOT = Path(__file__).parent.parent.parent
ANALYZE, NFT = shutil.which("systemd-analyze"), shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MOST_EXPOSED = {
    "cortex-router.service": 1.7,
    "cortex-redis.service": 1.5,
    "cortex-jobs.service": 1.6,
    "cortex-firewall.service": 1.9,
    # Its workers need GPUs, JIT compilers, other processes' memory figures and control groups.
    "cortex-agent.service": 2.5,
}


INVENTORY = """
[redis]
box ansible_host=10.0.0.9
[routers]
box
other ansible_host=10.0.0.10
[agents]
box
third ansible_host=10.0.0.11
[monitoring]
other
"""


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every template of the roles, written out for one machine that is router, host and Redis."""
    out = tmp_path_factory.mktemp("written")
    program = out / "opt" / "0.1.0+test" / "bin" / "cortex"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    inventory = out / "inventory"
    inventory.write_text(INVENTORY)
    variables = {
        "out": str(out), "cortex_prefix": str(out / "opt"), "cortex_version": "0.1.0+test", "redis_server": "/bin/true",
        "cortex_redis_password": "p" * 16, "cortex_redis_admin_password": "a" * 16, "machine": "box",
        "ansible_python_interpreter": sys.executable,
    }  # fmt: skip
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), "render.yml", "-e", json.dumps(variables)],
        env={**os.environ, "ANSIBLE_CONFIG": "ansible.cfg", "LC_ALL": "C.UTF-8"},
        cwd=ROOT / "deploy/ansible", capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for name, text in json.loads((out / "rendered.json").read_text()).items():
        (out / name).write_text(text)
    (out / "rendered.json").unlink()
    return out


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_the_units(written: Path) -> None:
    units = [p.name for p in (*written.glob("*.service"), *written.glob("*.socket"))]

    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *units], cwd=written, capture_output=True, text=True, check=False
    )

    assert len(units) >= 7
    assert [line for line in done.stderr.splitlines() if "cortex" in line] == []


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_a_unit_closes_what_it_does_not_need(unit: str, written: Path) -> None:
    most = str(round(MOST_EXPOSED[unit] * 10))

    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", f"--threshold={most}", str(written / unit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_settings_that_are_written_stand(written: Path) -> None:
    found, _ = settings.load(written / "cortex.toml", {})

    assert found.redis.url == "redis://cortex-router@10.0.0.9:6380/0"
    assert found.agent.keep_workers
    assert found.agent.worker_host == "10.0.0.9"


def test_no_secret_is_in_a_file_everybody_may_read(written: Path) -> None:
    readable = [p for p in written.iterdir() if p.is_file() and p.name not in ("inventory", "users.acl")]

    assert not [p.name for p in readable if "p" * 16 in p.read_text() or "a" * 16 in p.read_text()]
    assert "p" * 16 not in (written / "users.acl").read_text()  # only its hash


@pytest.mark.skipif(NFT is None or os.geteuid() != 0, reason="nft is not here, or not for us")
def test_the_firewalls_rules_load(written: Path) -> None:
    done = subprocess.run(
        [str(NFT), "--check", "-f", str(written / "firewall.nft")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_agents_and_workers_are_open_to_routers_and_redis_to_members_alone(written: Path) -> None:
    rules = (written / "firewall.nft").read_text()

    opened = set(re.findall(r"ip6? saddr (\S+) tcp dport { (\S+) } accept", rules))
    closed = re.findall(r"tcp dport { (\S+) } reject", rules)
    assert opened == {
        ("10.0.0.9", "13131"), ("10.0.0.10", "13131"),
        ("10.0.0.9", "20000-20999"), ("10.0.0.10", "20000-20999"),
        ("10.0.0.9", "6380"), ("10.0.0.10", "6380"), ("10.0.0.11", "6380"),
        ("0.0.0.0/0", "31313"), ("::/0", "31313"),
        ("10.0.0.9", "31313"), ("10.0.0.10", "31313"), ("10.0.0.11", "31313"),
        ("10.0.0.9", "31314"), ("10.0.0.10", "31314"),
    }  # fmt: skip
    assert closed == ["13131", "20000-20999", "6380", "31313", "31314"]
