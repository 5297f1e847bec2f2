"""`cortex up` starts from nothing and leaves nothing, however it ends."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.catalogues import fake
from tests.support.stack import CORTEX, Stack, eventually, free_port

pytestmark = pytest.mark.xdist_group("agents")

MODELS = fake("fake/one") + fake("fake/loads", "--load-s", "60") + fake("fake/stubborn", "--ignore-term")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    running = Stack(tmp_path, MODELS)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The running cortex of the tests in the default suite. The last one ends it."""
    running = Stack(tmp_path_factory.mktemp("first"), MODELS)
    try:
        yield running
    finally:
        running.end()


def test_up_runs_its_own_redis_and_other_commands_find_it(first: Stack) -> None:
    env = {k: v for k, v in first.env.items() if k != "CORTEX_URL"}

    listed = subprocess.run([*CORTEX, "status"], env=env, capture_output=True, text=True, check=False)

    assert listed.returncode == 0
    assert f"http://127.0.0.1:{first.port}: ok" in listed.stdout
    assert first.http.post(
        "/v1/chat/completions", json={"model": "fake/one", "messages": [{"role": "user", "content": "x"}]}
    ).is_success


def test_commands_find_up_before_its_router_answers(first: Stack) -> None:
    state = first.folder / "state" / "cortex"
    log = (json.loads(line) for line in (state / "log" / "router.log").read_text().splitlines())
    ready = next(datetime.fromisoformat(line["timestamp"]) for line in log if line["event"] == "router_listening")

    assert (state / "up.json").stat().st_mtime < ready.timestamp()


def test_sigterm_ends_up_and_its_children_within_ten_seconds(first: Stack) -> None:
    ends_within_ten_seconds(first, signal.SIGTERM, times=2)  # `uv run` passes on what its group gets too


@pytest.mark.long
def test_ctrl_c_ends_up_and_its_children_within_ten_seconds(stack: Stack) -> None:
    ends_within_ten_seconds(stack, signal.SIGINT)


def ends_within_ten_seconds(stack: Stack, number: signal.Signals, times: int = 1) -> None:
    stack.chat("fake/one")
    assert stack.cli("fn", "warm", "fake/stubborn", "--wait").returncode == 0
    assert stack.cli("fn", "warm", "fake/loads").returncode == 0

    for _ in range(times):
        stack.process.send_signal(number)
        eventually(lambda: "stopping" in stack.output(), what="the signal to be heard")

    assert stack.process.wait(10) == 0
    assert stack.processes() == []


@pytest.mark.long
def test_a_hung_child_is_killed_with_its_workers(stack: Stack) -> None:
    stack.chat("fake/one")
    stack.child("agent").suspend()

    stack.process.terminate()

    stack.process.wait(10)
    assert stack.processes() == []


@pytest.mark.long
def test_a_second_signal_ends_up_at_once(stack: Stack) -> None:
    stack.chat("fake/one")
    stack.child("agent").suspend()
    stack.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in stack.output(), what="the first signal to be heard")

    stack.process.send_signal(signal.SIGINT)

    assert stack.process.wait(3) == 130
    eventually(lambda: stack.processes() == [], within_s=3, what="nothing left")


@pytest.mark.long
def test_a_killed_parent_leaves_no_process(stack: Stack) -> None:
    stack.chat("fake/one")

    stack.process.kill()

    eventually(lambda: stack.processes() == [], within_s=10, what="nothing left")


@pytest.mark.long
def test_workers_of_a_killed_agent_end_with_up(stack: Stack) -> None:
    stack.chat("fake/one")
    stack.child("agent").kill()

    stack.process.terminate()

    assert stack.process.wait(10) == 0
    assert stack.processes() == []


@pytest.mark.long
def test_a_child_that_dies_is_restarted(stack: Stack) -> None:
    first = stack.child("router")
    first.send_signal(signal.SIGKILL)

    eventually(lambda: answers(stack), within_s=30, what="the router to be back")

    assert stack.child("router").pid != first.pid
    assert "router was killed by SIGKILL" in stack.output()


def answers(stack: Stack) -> bool:
    import httpx

    try:
        return stack.chat("fake/one").is_success
    except httpx.HTTPError:
        return False


@pytest.mark.long
def test_a_taken_port_is_replaced_with_a_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "s"), "XDG_CACHE_HOME": str(tmp_path / "c")}
        (tmp_path / "m.toml").write_text(MODELS)
        with subprocess.Popen(
            [*CORTEX, "up", "--models", str(tmp_path / "m.toml"), "--port", str(port)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as up:
            assert up.stdout is not None
            lines = iter(up.stdout)
            output = next(line for line in lines if "is in use: the router listens on" in line)
            ready = next(line for line in lines if "cortex is up" in line)
            up.terminate()
            up.wait(15)

    assert output.startswith(f"cortex: port {port} is in use")
    assert f":{port}/" not in ready


@pytest.mark.parametrize(
    ("models", "complaint"),
    [("[[models]]\n", "has no id"), ("[[models]", "is not TOML"), (None, "cannot be read")],
)
def test_an_invalid_catalogue_stops_up_before_any_start(tmp_path: Path, models: str | None, complaint: str) -> None:
    path = tmp_path / "m.toml"
    if models is not None:
        path.write_text(models)
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "s")}

    ended = subprocess.run([*CORTEX, "up", "--models", str(path)], env=env, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert complaint in " ".join(ended.stderr.split())
    assert not (tmp_path / "s" / "cortex").exists()


def test_invalid_settings_are_an_error_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "cortex.toml").write_text("[gateway]\nlisten = 3\n[agent]\nheartbet_s = 1\n")

    ended = subprocess.run(
        [*CORTEX, "up", "--config", str(tmp_path / "cortex.toml")], capture_output=True, text=True, check=False
    )

    output = " ".join(ended.stderr.replace("│", " ").split())
    assert ended.returncode == 1
    assert "cortex.toml:2: gateway.listen" in output
    assert "did you mean 'heartbeat_s'?" in output


@pytest.mark.long
def test_the_router_refuses_a_public_address_without_a_key(tmp_path: Path) -> None:
    env = {**os.environ, "CORTEX_GATEWAY__LISTEN": "0.0.0.0:31313", "XDG_STATE_HOME": str(tmp_path)}

    ended = subprocess.run([*CORTEX, "router"], env=env, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "refusing to listen on 0.0.0.0:31313" in " ".join(ended.stderr.split())


@pytest.mark.long
def test_a_pretended_fleet_serves_any_catalogue_on_pretended_gpus(tmp_path: Path) -> None:
    models = (Path(__file__).parents[2] / "examples" / "fleet.toml").read_text()
    running = Stack(tmp_path, models, more=["--fake", "--devices", "2x24GB,1x80GB"])
    try:
        listed = json.loads(running.cli("gpu", "ls", "--json").stdout)
        answer = running.chat("small", max_tokens=3)
        plan = running.cli("fn", "warm", "large", "--plan")
        wrong = running.cli("up", "--devices", "many")

        assert [d["total_mb"] for d in listed] == [24576, 24576, 81920]
        assert answer.json()["choices"][0]["message"]["content"]
        assert "gpu-2: 70000 MiB each (declared)" in plan.stdout
        assert wrong.returncode == 2
    finally:
        running.end()


@pytest.mark.long
def test_a_second_up_ends_with_a_message_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(MODELS)
    env = {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path / "s"),
        "XDG_CACHE_HOME": str(tmp_path / "c"),
        "CORTEX_GATEWAY__METRICS_LISTEN": "",
    }
    logs = [tmp_path / "up0.log", tmp_path / "up1.log"]
    ups = []
    for log in logs:
        argv = [*CORTEX, "up", "--models", str(tmp_path / "m.toml"), "--port", str(free_port())]
        with log.open("wb") as out:
            ups.append(subprocess.Popen(argv, env=env, stdout=out, stderr=out, start_new_session=True))
    try:
        (loser,) = eventually(lambda: [n for n in (0, 1) if ups[n].poll() is not None], what="one to be refused")
        eventually(lambda: "cortex is up" in logs[1 - loser].read_text(), within_s=40, what="the other one to be up")

        assert ups[loser].returncode == 1
        assert "`cortex up` runs already" in logs[loser].read_text()
        status = subprocess.run([*CORTEX, "fn", "cool", "fake/one"], env=env, capture_output=True, check=False)
        assert status.returncode == 0
    finally:
        for up in ups:
            up.terminate()
            up.wait(15)


@pytest.mark.long
def test_the_next_up_waits_for_the_end_of_the_previous_ones_processes(stack: Stack, tmp_path: Path) -> None:
    stack.child("agent").suspend()
    stack.process.kill()
    stack.process.wait(10)
    argv = [*CORTEX, "up", "--models", str(stack.models), "--port", str(free_port())]
    log = tmp_path / "next.log"
    with log.open("wb") as out:
        following = subprocess.Popen(argv, env=stack.env, stdout=out, stderr=out, start_new_session=True)
    try:
        eventually(lambda: "waiting for processes of the last `cortex up`" in log.read_text(), what="it to wait")
        for left in stack.processes():
            if left.pid != following.pid and "agent" in " ".join(left.cmdline()):
                left.resume()
        eventually(lambda: "cortex is up" in log.read_text(), within_s=40, what="the next one")
    finally:
        following.terminate()
        following.wait(15)
