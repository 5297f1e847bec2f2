"""A router's processes: one takes over while another finishes, and a failed start is reported at once."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import CORTEX, eventually, free_port, own_redis

pytestmark = pytest.mark.long

TOKENS = 200
MODELS = "\n".join([fake("t/long", "--tps", "20", "--tokens", str(TOKENS)), fake("t/short")])


def test_a_stream_finishes_at_the_old_router_while_the_next_one_serves(tmp_path: Path) -> None:
    with (
        own_redis(tmp_path) as url,
        socket.create_server(("127.0.0.1", 0)) as held,
        Fleet(tmp_path, url, MODELS, {"a": {}}, held=held) as fleet,
    ):
        body = {"model": "t/long", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        with fleet.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if '"content"' in line)
            old = psutil.Process(fleet.processes["router"].pid).children()
            fleet.kill("router", signal.SIGTERM)
            assert [p for p in old if p.is_running()]  # the restart did not wait for the stream
            fleet.start_router()

            assert fleet.chat("t/short").status_code == 200
            rest = [line for line in lines if line]

        assert rest[-1] == "data: [DONE]"
        assert sum('"content"' in line for line in rest) >= TOKENS - 1
        psutil.wait_procs(old, timeout=15)
        assert not [p for p in old if p.is_running()]


def test_a_router_serves_although_its_log_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(MODELS)
    url = f"http://127.0.0.1:{free_port()}"
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "CORTEX_REDIS_URL": f"unix://{tmp_path}/no-redis.sock",
        "CORTEX_MODELS_CONFIG": str(tmp_path / "models.toml"),
        "CORTEX_GATEWAY__LISTEN": url.removeprefix("http://"),
        "CORTEX_GATEWAY__METRICS_LISTEN": "",
    }
    argv = ["/bin/sh", "-c", 'exec "$0" "$@" 2>/dev/full', *CORTEX, "router", "--workers", "2"]
    router = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=10) as http:
            eventually(lambda: answers(http), within_s=30, what="the router")
            cold = http.post("/v1/chat/completions", json={"model": "t/short", "messages": []})
            ended = router.poll()
    finally:
        router.terminate()
        router.wait(20)

    assert (cold.status_code, cold.json()["error"]["code"], ended) == (503, "record_away", None)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health").is_success
    except httpx.HTTPError:
        return False


def test_a_router_whose_processes_cannot_start_ends_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(MODELS)
    settings = tmp_path / "cortex.toml"
    gateway = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = ""\nhand_over = true\n'
    settings.write_text(f'ca_file = "missing.pem"\n{gateway}')

    done = subprocess.run([*CORTEX, "router", "--config", str(settings)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "missing.pem cannot be used" in done.stderr
    assert "the router's worker processes exit during startup" in done.stderr
