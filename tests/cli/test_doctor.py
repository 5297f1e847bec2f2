"""What the doctor says of values it is shown; what it finds out for itself is tried on a running cortex."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cortex.cli.doctor import (
    Finding,
    examined,
    room,
    the_agents,
    the_disks,
    the_folders,
    the_hosts,
    the_ports,
    the_redis,
    the_token,
    what_router_lacks,
)
from cortex.platform.settings import Agent, Gateway, Redis, Settings
from tests.support.stack import free_port, own_redis

NOW = 1000.0


def a_host(**rest: Any) -> dict[str, Any]:
    values = {"name": "a", "at": NOW - 1, "cordoned": False, "devices": [{}], "problem": "", "engines": {"fake": "1"}}
    return values | rest


def levels(findings: Any) -> list[str]:
    return [f.level for f in findings]


@pytest.mark.parametrize(
    ("host", "level", "said"),
    [
        (a_host(), "ok", "1 device"),
        (
            a_host(address="http://a:1", namesake={"address": "http://b:1"}),
            "problem",
            "http://a:1 is in the record, http://b:1 is refused",
        ),
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


def test_a_silent_host_is_a_problem_and_what_still_serves_there_is_told() -> None:
    health = {"silent": {"a": {"silent_s": 12, "serving": 3}}, "background": "ok"}

    (found,) = what_router_lacks(health)

    assert (found.level, found.about) == ("problem", "host a")
    assert "has not reported for 12 s; 3 of its instances still answer" in found.said


def test_background_work_that_failed_is_a_warning() -> None:
    fault = {"work": "sweep", "error": "KeyError", "failed_s_ago": 3, "count": 2}

    (found,) = what_router_lacks({"silent": {}, "background": [fault]})

    assert (found.level, "'sweep' raised KeyError 3 s ago" in found.said) == ("warning", True)


def test_a_router_of_an_earlier_release_is_not_asked_for_what_it_cannot_tell() -> None:
    assert list(what_router_lacks({})) == []


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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can reach; those of pytest are closed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_files_that_others_can_read_are_a_problem_with_its_fix(open_folder: Path) -> None:
    log = open_folder / "log"
    log.write_text("who used what")
    log.chmod(0o644)

    found = list(the_folders(open_folder, log, open_folder / "none"))
    open_folder.chmod(0o700)
    closed = list(the_folders(open_folder))

    expected = f"others can read {open_folder} and 1 more"
    assert found == [Finding("problem", "private files", expected, f"chmod -R go-rwx {open_folder}")]
    assert levels(closed) == ["ok"]


def test_files_behind_a_closed_folder_are_private(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "state").mkdir(parents=True)
    (closed / "state" / "log").write_text("")
    (closed / "state" / "log").chmod(0o644)
    closed.chmod(0o700)

    assert levels(the_folders(closed / "state")) == ["ok"]


def test_folders_that_are_not_there_yet_are_judged_by_where_they_will_be(tmp_path: Path) -> None:
    agent = Agent(
        cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "a" / "b"), log_dir=str(tmp_path / "logs")
    )

    found = list(the_disks(Settings(agent=agent)))

    assert [f.about for f in found] == ["cache", "state", "worker logs"]
    assert not [f for f in found if "cannot be written" in f.said]


@pytest.mark.parametrize(("free_gb", "level"), [(0.01, "problem"), (3.0, "warning"), (80.0, "ok")])
def test_a_full_disk_is_a_problem_and_a_small_one_a_warning(free_gb: float, level: str) -> None:
    found = room("cache", Path("/srv/cache"), free_gb)

    assert found.level == level
    assert (level == "ok") is not bool(found.do)


def test_an_agent_that_does_not_answer_is_said_with_what_to_look_at() -> None:
    (found,) = the_agents([{"name": "a", "address": f"http://127.0.0.1:{free_port()}"}], "")

    assert (found.level, found.about) == ("warning", "agent a")
    assert "firewall" in found.do


def test_a_redis_that_is_away_is_a_problem_only_where_one_is_named() -> None:
    settings = Settings(redis=Redis(url=f"redis://:secret@127.0.0.1:{free_port()}/0"))

    (named,), (other,) = the_redis(settings, expected=True), the_redis(settings, expected=False)

    assert (named.level, other.level) == ("problem", "ok")
    assert "secret" not in named.said


def test_a_redis_that_throws_keys_away_is_a_problem(tmp_path: Path) -> None:
    with own_redis(tmp_path) as url, redis.Redis.from_url(url) as client:
        well = levels(the_redis(Settings(redis=Redis(url=url)), expected=True))
        client.config_set("maxmemory-policy", "allkeys-lru")

        found = list(the_redis(Settings(redis=Redis(url=url)), expected=True))

    assert set(well) == {"ok"}
    assert ("problem", "it throws keys away when full (allkeys-lru)") in [(f.level, f.said) for f in found]


def test_that_no_router_answers_is_said_once_and_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    found = [f for f in examined(None) if f.about == "router"]

    assert [f.level for f in found] == ["problem"]
    assert "\n" not in found[0].said
    assert "cortex up" in found[0].do


def test_ports_that_somebody_else_has_are_named() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = Gateway(listen=listen, metrics_listen="")
        settings = Settings(gateway=gateway, agent=Agent(listen=f"127.0.0.1:{free_port()}"))

        found = list(the_ports(settings, used=False))

    assert [(f.about, f.level) for f in found] == [("router port", "problem"), ("agent port", "ok")]
