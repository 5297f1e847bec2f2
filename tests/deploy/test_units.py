"""Files of the deployment: valid units with few privileges, settings, firewall rules, Redis users."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cortex.platform import settings_file
from tests.deploy.linted import ROOT

# The machine's files are rendered once.
pytestmark = pytest.mark.xdist_group("units")

ANALYZE, NFT = shutil.which("systemd-analyze"), shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MOST_EXPOSED = {
    "cortex-router.service": 1.7,
    "cortex-redis.service": 1.5,
    "cortex-jobs.service": 1.6,
    "cortex-prometheus.service": 1.5,
    "cortex-firewall.service": 1.9,
    # Its workers need GPUs, JIT compilers, other processes' memory figures and control groups.
    "cortex-agent.service": 2.5,
}


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_analyze_accepts_the_units(files: Path) -> None:
    units = [p.name for p in (*files.glob("*.service"), *files.glob("*.socket"))]

    run = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *units], cwd=files, capture_output=True, text=True, check=False
    )

    # The firewall's unit runs nft, which the deployment installs and this machine may lack.
    missing = "Command /usr/sbin/nft is not executable: No such file or directory"
    assert len(units) >= 8
    assert [line for line in run.stderr.splitlines() if "cortex" in line and missing not in line] == []


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_a_unit_has_at_most_its_documented_exposure(unit: str, files: Path) -> None:
    most = str(round(MOST_EXPOSED[unit] * 10))

    run = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", f"--threshold={most}", str(files / unit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout.splitlines()[-1]


def test_the_rendered_settings_are_valid(files: Path) -> None:
    result, _ = settings_file.load(files / "cortex.toml", {})

    assert result.redis.url == "redis://cortex-router@10.0.0.9:6380/0"
    assert result.token_file == "/etc/cortex/fleet.token"
    assert result.agent.token_file == "/etc/cortex/host.token"
    assert result.agent.keep_workers
    assert result.agent.worker_host == "10.0.0.9"


def test_the_role_refuses_settings_that_the_version_does_not_understand(files: Path, tmp_path: Path) -> None:
    tasks = yaml.safe_load((ROOT / "roles/cortex/tasks/settings.yml").read_text())
    (task,) = [t for t in tasks if t["name"] == "Write the settings"]
    command = task["ansible.builtin.template"]["validate"].replace("{{ cortex_env }}/bin/python", sys.executable)
    unknown = tmp_path / "cortex.toml"
    unknown.write_text("[gateway]\nlissten = 1\n")

    good, bad = (
        subprocess.run(shlex.split(command % path), capture_output=True, text=True, check=False)
        for path in (files / "cortex.toml", unknown)
    )

    assert good.returncode == 0, good.stderr
    assert "SettingsError" in bad.stderr and "lissten" in bad.stderr


def test_routers_run_as_a_separate_user(files: Path) -> None:
    users = {
        name: re.findall(r"^(?:User|Group)=(.*)$", (files / f"cortex-{name}.service").read_text(), re.MULTILINE)
        for name in ("router", "agent", "jobs")
    }

    assert users == {"router": ["cortex-router"] * 2, "agent": ["cortex"] * 2, "jobs": ["cortex"] * 2}


def test_with_tls_redis_and_agents_accept_tls_only(tls_files: Path) -> None:
    result, _ = settings_file.load(tls_files / "cortex.toml", {})
    redis = (tls_files / "redis.conf").read_text().splitlines()
    unit = (tls_files / "cortex-agent.service").read_text()

    assert result.redis.url == "rediss://cortex-host-third@10.0.0.9:6380/0"
    assert f"CORTEX_REDIS__URL={result.redis.url}" in unit
    assert result.ca_file == "/etc/cortex/tls/ca.pem"
    assert (result.agent.tls_cert, result.agent.tls_key) == ("/etc/cortex/tls/own.pem", "/etc/cortex/tls/own.key")
    assert {"port 0", "tls-port 6380"} <= set(redis)


def test_no_world_readable_file_has_a_secret(files: Path) -> None:
    readable = [p for p in files.iterdir() if p.is_file() and p.name not in ("inventory", "users.acl")]

    assert not [p.name for p in readable if "p" * 16 in p.read_text() or "a" * 16 in p.read_text()]
    assert "p" * 16 not in (files / "users.acl").read_text()  # only its hash


@pytest.mark.skipif(NFT is None or os.geteuid() != 0, reason="needs nft and root")
def test_nft_accepts_the_firewalls_rules(files: Path) -> None:
    run = subprocess.run(
        [str(NFT), "--check", "-f", str(files / "firewall.nft")], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr


def test_the_firewall_admits_hosts_to_agents_routers_to_workers_and_members_to_redis(files: Path) -> None:
    rules = (files / "firewall.nft").read_text()

    opened = set(re.findall(r"ip6? saddr (\S+) tcp dport { (\S+) } accept", rules))
    closed = re.findall(r"tcp dport { (\S+) } reject", rules)
    assert opened == {
        *((f"10.0.0.{n}", "13131") for n in range(9, 13)),
        ("10.0.0.9", "20000-20999"), ("10.0.0.10", "20000-20999"),
        *((f"10.0.0.{n}", "6380") for n in range(9, 13)),
        ("0.0.0.0/0", "31313"), ("::/0", "31313"),
        *((f"10.0.0.{n}", "31313") for n in range(9, 13)),
        ("10.0.0.9", "31314"), ("10.0.0.10", "31314"),
    }  # fmt: skip
    assert closed == ["13131", "20000-20999", "6380", "31313", "31314"]


def test_each_host_has_its_own_redis_user_and_password(files: Path) -> None:
    users = (files / "hosts.acl").read_text().splitlines()
    secret = hashlib.sha256(f"{'p' * 16} of host third".encode()).hexdigest()

    assert [line.split()[1] for line in users] == ["cortex-host-box", "cortex-host-third", "cortex-host-apart"]
    assert f"#{hashlib.sha256(secret.encode()).hexdigest()}" in users[1]
    assert "~cortex:host:third " in users[1]
    assert not any(word.startswith("~cortex:host:") and word != "~cortex:host:third" for word in users[1].split())
    assert "%R~cortex:cordon" in users[1]
