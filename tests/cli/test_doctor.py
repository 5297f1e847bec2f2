"""The doctor's checks on values; e2e tests run it on a running cortex."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from msgspec.structs import replace

from cortex.cli.checks.finding import Finding
from cortex.cli.checks.fleet import check_background, check_hosts, check_parking, check_starts
from cortex.cli.checks.machine import (
    check_agents,
    check_disks,
    check_folders,
    check_ports,
    check_redis,
    check_space,
    check_tokens,
)
from cortex.cli.doctor import run_checks
from cortex.platform.keys import host_file
from cortex.platform.record import Held, Namesake, Tier
from cortex.platform.settings import Agent, Gateway, Redis, Settings
from cortex.router.api_types import BackgroundFault, DeviceView, FunctionView, Health, HostSilence, HostView
from tests.support.stack import free_port, own_redis

NOW = 1000.0
DEVICE = DeviceView(id="gpu-0", name="GPU", kind="gpu", total_mb=1000)


def a_host(**rest: Any) -> HostView:
    values: dict[str, Any] = {"address": "http://a:1", "at": NOW - 1, "devices": (DEVICE,), "engines": {"fake": "1"}}
    return HostView(name="a", now=NOW, **values | rest)


def levels(findings: Any) -> list[str]:
    return [f.level for f in findings]


@pytest.mark.parametrize(
    ("host", "level", "text"),
    [
        (a_host(), "ok", "1 device"),
        (
            a_host(namesake=Namesake(name="a", address="http://b:1")),
            "problem",
            "http://a:1 is in the record, http://b:1 is rejected",
        ),
        (a_host(at=NOW - 40), "warning", "last reported 40 s ago"),
        (a_host(cordoned=True), "warning", "cordoned"),
        (a_host(problem="NVML: driver mismatch"), "problem", "driver mismatch"),
        (a_host(engines={}), "problem", "no engine"),
        (
            a_host(
                devices=(replace(DEVICE, id="GPU-1", foreign_mb=100_964),),
                foreign=(
                    Held(device="GPU-1", pid=4711, command="python", memory_mb=100_964),
                    Held(device="GPU-2", pid=4712, command="other", memory_mb=5),
                ),
            ),
            "warning",
            "hold 100964 MiB of GPU-1: python (pid 4711)",
        ),
    ],
)
def test_a_host_finding_has_its_level_and_reason(host: HostView, level: str, text: str) -> None:
    findings = list(check_hosts([host]))

    assert (findings[-1].level, text in findings[-1].text) == (level, True)
    assert level == "ok" or findings[-1].do


def test_a_silent_host_is_a_problem_with_its_serving_instances() -> None:
    health = Health(status="degraded", silent={"a": HostSilence(silent_s=12, serving=3)})

    (findings,) = check_background(health)

    assert (findings.level, findings.about) == ("problem", "host a")
    assert "has not reported for 12 s; 3 of its instances still serve" in findings.text


def test_a_failed_background_task_is_a_warning() -> None:
    fault = BackgroundFault(work="sweep", error="KeyError", failed_s_ago=3, count=2)

    (findings,) = check_background(Health(status="degraded", background=(fault,)))

    assert (findings.level, "'sweep' raised KeyError 3 s ago" in findings.text) == ("warning", True)


def test_missing_health_fields_of_an_earlier_release_give_no_finding() -> None:
    health = msgspec.json.decode(b'{"status": "ok"}', type=Health)

    assert list(check_background(health)) == []


def test_a_fleet_without_hosts_is_a_problem() -> None:
    assert levels(check_hosts([])) == ["problem"]


@pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root")
@pytest.mark.parametrize(("uid", "mode", "do"), [(0, 0o644, "chmod o="), (0, 0o640, ""), (1000, 0o640, "chmod go=")])
def test_a_token_that_others_can_read_is_a_problem(tmp_path: Path, uid: int, mode: int, do: str) -> None:
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(mode)
    os.chown(path, uid, -1)

    (finding,) = check_tokens(Settings(token_file=str(path)))

    problem = Finding("problem", "fleet token", f"others can read {path}", f"{do} {path}")
    assert finding == (problem if do else Finding("ok", "fleet token", str(path)))


def test_a_host_with_its_own_token_needs_no_fleet_token(tmp_path: Path) -> None:
    own = tmp_path / "host.token"
    settings = Settings(token_file=str(tmp_path / "none"), agent=Agent(name="a", token_file=str(own)))
    missing = list(check_tokens(settings))
    own.write_text(host_file(("fleet",), "b"))
    own.chmod(0o600)
    of_another = list(check_tokens(settings))
    own.write_text(host_file(("fleet",), "a"))

    assert levels(missing) == levels(of_another) == ["problem"]
    assert "`cortex host token a` on a machine with the fleet token makes one" in missing[0].text
    assert "is the token of host 'b', and this is host 'a'" in of_another[0].text
    assert list(check_tokens(settings)) == [Finding("ok", "host token", str(own))]


def test_a_hosts_token_in_place_of_the_fleet_token_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert levels(check_tokens(Settings(token_file=str(path)))) == ["ok"]  # created on first use

    path.write_text(host_file(("fleet",), "a"))

    (finding,) = check_tokens(Settings(token_file=str(path)))
    assert (finding.level, finding.about) == ("problem", "fleet token")
    assert "is the token of a host, not the fleet token" in finding.text


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

    findings = list(check_folders(open_folder, log, open_folder / "none"))
    open_folder.chmod(0o700)
    closed = list(check_folders(open_folder))

    expected = f"others can read {open_folder} and 1 more"
    assert findings == [Finding("problem", "private files", expected, f"chmod -R go-rwx {open_folder}")]
    assert levels(closed) == ["ok"]


def test_files_behind_a_closed_folder_are_private(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "state").mkdir(parents=True)
    (closed / "state" / "log").write_text("")
    (closed / "state" / "log").chmod(0o644)
    closed.chmod(0o700)

    assert levels(check_folders(closed / "state")) == ["ok"]


def test_a_missing_folder_is_checked_at_its_nearest_parent(tmp_path: Path) -> None:
    agent = Agent(
        cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "a" / "b"), log_dir=str(tmp_path / "logs")
    )

    findings = list(check_disks(Settings(agent=agent)))

    assert [f.about for f in findings] == ["cache", "state", "worker logs"]
    assert not [f for f in findings if "cannot be written" in f.text]


@pytest.mark.parametrize(("free_gb", "level"), [(0.01, "problem"), (3.0, "warning"), (80.0, "ok")])
def test_a_full_disk_is_a_problem_and_a_small_one_a_warning(free_gb: float, level: str) -> None:
    findings = check_space("cache", Path("/srv/cache"), free_gb)

    assert findings.level == level
    assert (level == "ok") is not bool(findings.do)


def test_an_unreachable_agent_is_a_warning_with_a_fix() -> None:
    (findings,) = check_agents([a_host(address=f"http://127.0.0.1:{free_port()}")], "")

    assert (findings.level, findings.about) == ("warning", "agent a")
    assert "firewall" in findings.do


def test_an_unreachable_redis_is_a_problem_only_if_configured() -> None:
    settings = Settings(redis=Redis(url=f"redis://:secret@127.0.0.1:{free_port()}/0"))

    (named,), (other,) = check_redis(settings, expected=True), check_redis(settings, expected=False)

    assert (named.level, other.level) == ("problem", "ok")
    assert "secret" not in named.text


def test_a_redis_that_evicts_keys_is_a_problem(tmp_path: Path) -> None:
    with own_redis(tmp_path) as url, redis.Redis.from_url(url) as client:
        well = levels(check_redis(Settings(redis=Redis(url=url)), expected=True))
        client.config_set("maxmemory-policy", "allkeys-lru")

        findings = list(check_redis(Settings(redis=Redis(url=url)), expected=True))

    assert set(well) == {"ok"}
    assert ("problem", "it evicts keys when full (allkeys-lru)") in [(f.level, f.text) for f in findings]


def test_an_unreachable_router_is_reported_once_with_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    findings = [f for f in run_checks(None) if f.about == "router"]

    assert [f.level for f in findings] == ["problem"]
    assert "\n" not in findings[0].text
    assert "cortex up" in findings[0].do


def test_a_port_in_use_is_a_problem() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listen = f"127.0.0.1:{listener.getsockname()[1]}"
        gateway = Gateway(listen=listen, metrics_listen="")
        settings = Settings(gateway=gateway, agent=Agent(listen=f"127.0.0.1:{free_port()}"))

        findings = list(check_ports(settings, used=False))

    assert [(f.about, f.level) for f in findings] == [("router port", "problem"), ("agent port", "ok")]


def tiered(**rest: Any) -> HostView:
    return a_host(
        **{"park_ram_mb": 4000, "tiers": {Tier.SLEEP: "", Tier.FREEZE: "the driver is older than 580"}} | rest
    )


def a_function_view(**rest: Any) -> FunctionView:
    return FunctionView(**{"id": "f", "now": NOW, "state": "cold", "engine": "vllm", **rest})


def test_the_tiers_of_a_host_are_shown_with_what_happens_without_one() -> None:
    texts = [f.text for f in check_hosts([tiered()])]
    without = [f.text for f in check_hosts([tiered(tiers={Tier.SLEEP: "a", Tier.FREEZE: "b"})])]

    assert texts[1:] == [
        "no instance can freeze, they sleep instead: the driver is older than 580",
        "instances that leave a GPU can sleep: 0/4000 MiB of RAM held",
    ]
    assert without[1:] == [
        "no instance can sleep, they stop instead: a",
        "no instance can freeze, they stop instead: b",
    ]


def test_a_function_whose_tier_no_host_has_is_a_warning() -> None:
    (finding,) = check_parking([a_function_view(park="freeze")], [tiered()])

    assert (finding.level, finding.about) == ("warning", "f")
    assert "so its instances stop: a: the driver is older than 580" in finding.text


def test_a_tier_that_failed_is_a_warning_with_the_way_back() -> None:
    (finding,) = check_parking([a_function_view(unparkable=(("a", "sleep", "it answered 500"),))], [tiered()])

    assert "sleep no longer on a, and stop instead: it answered 500" in finding.text
    assert finding.do == "`cortex fn forget f` tries again."


def test_a_trick_that_failed_is_a_warning_with_the_way_back() -> None:
    (finding,) = check_starts([a_function_view(tricks_off=(("a", "eager", "it exited with 1"),)), a_function_view()])

    assert finding.text == "its starts on a go without 'eager', which failed once: it exited with 1"
    assert (finding.level, finding.do) == ("warning", "`cortex fn forget f` tries again.")


@pytest.mark.parametrize(("weights_mb", "warnings"), [(2000, 0), (3000, 1)])
def test_ram_that_cannot_hold_a_sleeper_is_a_warning(weights_mb: int, warnings: int) -> None:
    findings = list(check_parking([a_function_view()], [tiered(weights={"f": weights_mb})]))

    assert len(findings) == warnings
    assert all("asleep it needs about 4500 MiB of RAM, and a gives" in f.text for f in findings)


@pytest.mark.parametrize(
    ("function", "warnings"),
    [
        ({"engine": "llamacpp", "vram_mb": 5000}, 1),
        ({"engine": "llamacpp", "vram_mb": 3000}, 0),
        ({"engine": "command", "vram_mb": 5000, "park": "freeze"}, 1),
        ({"engine": "command", "vram_mb": 5000, "park": "stop"}, 0),
        ({"engine": "vllm", "vram_mb": 5000, "park": "freeze"}, 0),
    ],
)
def test_ram_that_cannot_hold_a_frozen_instance_is_a_warning(function: dict[str, Any], warnings: int) -> None:
    host = tiered(tiers={Tier.SLEEP: "", Tier.FREEZE: ""})

    findings = list(check_parking([a_function_view(**function)], [host]))

    assert len(findings) == warnings
    assert all("frozen it needs about 5000 MiB of RAM, and a gives" in f.text for f in findings)


def test_hosts_without_gpus_have_nothing_to_say_about_tiers() -> None:
    assert list(check_parking([a_function_view(park="freeze")], [a_host()])) == []
