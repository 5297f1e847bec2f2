"""A router's processes: one takes over from another while that one finishes, and a start that fails is told at once."""

import signal
import socket
import subprocess
from pathlib import Path

import psutil

from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import CORTEX, own_redis

TOKENS = 200
MODELS = "\n".join([fake("t/long", "--tps", "20", "--tokens", str(TOKENS)), fake("t/short")])


def test_a_stream_outlives_its_router_while_the_next_one_serves(tmp_path: Path) -> None:
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
            assert [p for p in old if p.is_running()]  # nobody waited for the stream
            fleet.start_router()

            assert fleet.chat("t/short").status_code == 200
            rest = [line for line in lines if line]

        assert rest[-1] == "data: [DONE]"
        assert sum('"content"' in line for line in rest) >= TOKENS - 1
        psutil.wait_procs(old, timeout=15)
        assert not [p for p in old if p.is_running()]


def test_a_router_whose_processes_cannot_start_ends_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(MODELS)
    settings = tmp_path / "cortex.toml"
    gateway = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = ""\nhand_over = true\n'
    settings.write_text(f'ca_file = "missing.pem"\n{gateway}')

    done = subprocess.run([*CORTEX, "router", "--config", str(settings)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "missing.pem cannot be used" in done.stderr
    assert "the router's worker processes end as they start" in done.stderr
