"""What the deployment writes: units that systemd finds nothing wrong with and that close what they do not need."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cortex.platform import settings

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


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_the_units(written: Path) -> None:
    units = [p.name for p in (*written.glob("*.service"), *written.glob("*.socket"))]

    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *units], cwd=written, capture_output=True, text=True, check=False
    )

    # The firewall's unit runs nft, which the deployment installs and this machine may lack.
    missing = "Command /usr/sbin/nft is not executable: No such file or directory"
    assert len(units) >= 8
    assert [line for line in done.stderr.splitlines() if "cortex" in line and missing not in line] == []


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


def test_with_tls_the_record_and_agents_are_reached_by_it_alone(written_tls: Path) -> None:
    found, _ = settings.load(written_tls / "cortex.toml", {})
    redis = (written_tls / "redis.conf").read_text().splitlines()
    unit = (written_tls / "cortex-agent.service").read_text()

    assert found.redis.url == "rediss://cortex-host-third@10.0.0.9:6380/0"
    assert f"CORTEX_REDIS__URL={found.redis.url}" in unit
    assert found.ca_file == "/etc/cortex/tls/ca.pem"
    assert (found.agent.tls_cert, found.agent.tls_key) == ("/etc/cortex/tls/own.pem", "/etc/cortex/tls/own.key")
    assert {"port 0", "tls-port 6380"} <= set(redis)


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
        *((f"10.0.0.{n}", "6380") for n in range(9, 13)),
        ("0.0.0.0/0", "31313"), ("::/0", "31313"),
        *((f"10.0.0.{n}", "31313") for n in range(9, 13)),
        ("10.0.0.9", "31314"), ("10.0.0.10", "31314"),
    }  # fmt: skip
    assert closed == ["13131", "20000-20999", "6380", "31313", "31314"]


def test_each_host_is_a_user_of_redis_of_its_own_whose_password_it_alone_has(written: Path) -> None:
    users = (written / "hosts.acl").read_text().splitlines()
    secret = hashlib.sha256(f"{'p' * 16} of host third".encode()).hexdigest()

    assert [line.split()[1] for line in users] == ["cortex-host-box", "cortex-host-third", "cortex-host-apart"]
    assert f"#{hashlib.sha256(secret.encode()).hexdigest()}" in users[1]
    assert "~cortex:host:third " in users[1]
    assert not any(word.startswith("~cortex:host:") and word != "~cortex:host:third" for word in users[1].split())
    assert "%R~cortex:cordon" in users[1]
