"""What the doctor says of values it is shown; what it finds out for itself is tried on a running cortex."""

from pathlib import Path
from typing import Any

import pytest

from cortex.cli.doctor import Finding, the_disks, the_hosts, the_ports, the_token
from cortex.platform.settings import Agent, Gateway, Settings
from tests.support.stack import free_port

NOW = 1000.0


def a_host(**rest: Any) -> dict[str, Any]:
    values = {"name": "a", "at": NOW - 1, "cordoned": False, "devices": [{}], "problem": "", "engines": {"fake": "1"}}
    return values | rest


def levels(findings: Any) -> list[str]:
    return [f.level for f in findings]


@pytest.mark.parametrize(
    ("host", "level", "said"),
    [
        (a_host(), "ok", "1 devices"),
        (a_host(at=NOW + 30), "problem", "its clock is 30.0 s ahead"),
        (a_host(at=NOW - 40), "warning", "last reported 40 s ago"),
        (a_host(cordoned=True), "warning", "cordoned"),
        (a_host(problem="NVML: driver mismatch"), "problem", "driver mismatch"),
        (a_host(engines={}), "problem", "no engine"),
    ],
)
def test_a_host_is_well_or_it_is_said_why_not(host: dict[str, Any], level: str, said: str) -> None:
    found = list(the_hosts([host], NOW))

    assert (found[-1].level, said in found[-1].said) == (level, True)
    assert level == "ok" or found[-1].do


def test_a_fleet_without_hosts_is_a_problem() -> None:
    assert levels(the_hosts([], NOW)) == ["problem"]


def test_a_token_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert levels(the_token(path)) == ["ok"]  # made on first use

    path.write_text("secret")
    path.chmod(0o644)
    assert list(the_token(path)) == [Finding("problem", "fleet token", f"others can read {path}", f"chmod 600 {path}")]

    path.chmod(0o600)
    assert levels(the_token(path)) == ["ok"]


def test_folders_that_are_not_there_yet_are_judged_by_where_they_will_be(tmp_path: Path) -> None:
    agent = Agent(
        cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "a" / "b"), log_dir=str(tmp_path / "logs")
    )

    found = list(the_disks(Settings(agent=agent)))

    assert [f.about for f in found] == ["cache", "state", "worker logs"]
    assert {f.level for f in found} <= {"ok", "warning"}  # the disk may be nearly full


def test_ports_that_somebody_else_has_are_named() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = Gateway(listen=listen, metrics_listen="")
        settings = Settings(gateway=gateway, agent=Agent(listen=f"127.0.0.1:{free_port()}"))

        found = list(the_ports(settings, used=False))

    assert [(f.about, f.level) for f in found] == [("router port", "problem"), ("agent port", "ok")]
