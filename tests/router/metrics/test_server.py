"""The metrics port: without Redis, with its port in use, and with the record of a fleet."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import uvicorn
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform import metrics
from cortex.platform.api_keys import ApiKey, Scope, principal
from cortex.platform.fleet import Fleet
from cortex.platform.fleet_gauges import fleet_gauges
from cortex.platform.meter import Meter
from cortex.platform.record import Failure
from cortex.platform.settings import Gateway, Redis, Settings
from cortex.router.access.keyring import KeyRing
from cortex.router.metrics.server import MetricsServer, metrics_token, rejection
from cortex.router.metrics.worker_counts import CountsFile
from tests.support.factories import a_device, a_host, a_report, an_instance
from tests.support.stack import free_port


def settings(listen: str, **gateway: Any) -> Settings:
    return Settings(
        gateway=Gateway(metrics_listen=listen, **gateway), redis=Redis(url=f"redis://127.0.0.1:{free_port()}")
    )


def a_ring(*, loaded: bool = True, has_keys: bool = True) -> KeyRing:
    """Return a key ring with one key per scope; the scope is the key's name."""
    keys = {scope: principal(ApiKey(digest="", id=scope, name=scope, scope=scope)) for scope in Scope}
    return cast(KeyRing, SimpleNamespace(loaded=loaded, has_keys=has_keys, find=keys.get))


TOKEN = "a-secret-for-prometheus"
LOOPBACK, NETWORK = Gateway(), Gateway(metrics_listen="192.0.2.1:31314")


@pytest.mark.parametrize(
    ("headers", "gateway", "ring", "status"),
    [
        ({"host": "127.0.0.1:31314"}, LOOPBACK, a_ring(), None),
        ({"host": "[::1]:31314"}, LOOPBACK, a_ring(loaded=False), None),
        ({}, LOOPBACK, a_ring(), None),
        ({"host": "evil.example"}, LOOPBACK, a_ring(), 403),
        ({"host": "evil.example", "authorization": f"Bearer {TOKEN}"}, LOOPBACK, a_ring(), None),
        ({"host": "gpu-box:1"}, replace(LOOPBACK, allowed_hosts=("gpu-box",)), a_ring(), None),
        ({"host": "127.0.0.1"}, NETWORK, a_ring(), 401),
        ({}, NETWORK, a_ring(), 401),
        ({"authorization": "Bearer wrong"}, NETWORK, a_ring(), 401),
        ({"authorization": "Bearer "}, NETWORK, a_ring(), 401),
        ({"authorization": f"Bearer {TOKEN}"}, NETWORK, a_ring(loaded=False), None),
        ({"authorization": "Bearer status"}, NETWORK, a_ring(), None),
        ({"authorization": "Bearer admin"}, NETWORK, a_ring(), None),
        ({"authorization": "Bearer inference"}, NETWORK, a_ring(), 403),
        ({"cookie": "cortex_session=status"}, NETWORK, a_ring(), 401),
        ({}, NETWORK, a_ring(loaded=False), 503),
        ({}, replace(NETWORK, insecure=True), a_ring(has_keys=False), None),
        ({}, replace(NETWORK, insecure=True), a_ring(), 401),
    ],
)
def test_who_may_read_the_metrics(headers: dict[str, str], gateway: Gateway, ring: KeyRing, status: int | None) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]

    error = rejection(raw, ring, gateway, TOKEN)

    assert (error[0] if error else None) == status


@pytest.mark.parametrize("content", ["", "short", None])
def test_an_unusable_metrics_token_grants_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)

    assert metrics_token(str(path)) == ""
    assert rejection([(b"authorization", b"Bearer ")], a_ring(), NETWORK, "") == rejection([], a_ring(), NETWORK, "")


def test_off_loopback_the_metrics_token_works_while_redis_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"

    with MetricsServer(settings(f"0.0.0.0:{port}", metrics_token_file=str(tmp_path / "token")), tmp_path):
        without = httpx.get(url, trust_env=False)
        answer = httpx.get(url, headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False)

    assert without.status_code == 503  # keys are not loaded yet
    assert "cortex_record_up 0.0" in answer.text


def test_without_redis_the_routers_counters_are_served_without_fleet_metrics(tmp_path: Path) -> None:
    meter = Meter()
    meter.count(metrics.REQUESTS, ("org/model", "here"), 3)
    CountsFile(tmp_path).write(meter.snapshot())
    listen = f"127.0.0.1:{free_port()}"

    with MetricsServer(settings(listen), tmp_path):
        answer = httpx.get(f"http://{listen}/metrics", trust_env=False)
        elsewhere = httpx.get(f"http://{listen}/", trust_env=False)
        post = httpx.post(f"http://{listen}/metrics", trust_env=False)

    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert 'cortex_requests_total{model="org/model",node="here"} 3.0' in lines
    assert "cortex_record_up 0.0" in lines
    assert not any(line.startswith(("cortex_hosts", "cortex_device")) for line in lines)
    assert (elsewhere.status_code, post.status_code) == (404, 404)


def test_a_port_in_use_disables_metrics_and_raises_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with MetricsServer(settings(f"127.0.0.1:{other.getsockname()[1]}"), tmp_path):
            pass
        with MetricsServer(settings(""), tmp_path):  # disabled
            pass


def test_fleet_gauges_follow_the_record() -> None:
    busy = an_instance("one", ready=10.0)
    coming = an_instance("two", function="org/big", state=State.STARTING, devices=("gpu-1",), memory_mb=4000)
    failure = Failure(function="org/dies", revision="r", instance="x", reason="it died", at=90.0, retry_at=200.0)
    gpu = replace(a_device("gpu-1"), foreign_mb=300, used_mb=4500, utilization_pct=70, temp_c=60)
    host = replace(a_host(busy, coming, devices=(a_device(), gpu), failures=(failure,)), at=95.0)
    report = a_report(in_flight={"one": 2}, waiting={"org/big": 5})
    fleet = Fleet(hosts={host.name: host}, routers={"r": report}, cordoned=frozenset({host.name, "away"}))

    gauges = {(c.name, c.labels): c.value for c in fleet_gauges(fleet, {("cortex-a", "failed"): 1}, 100.0)}

    assert gauges[metrics.HOSTS.name, ("open",)] == 0
    assert gauges[metrics.HOSTS.name, ("cordoned",)] == 1
    assert gauges[metrics.HOST_AGE.name, ("host-a",)] == 5.0
    assert gauges[metrics.MODEL_IN_FLIGHT.name, ("host-a", "org/model")] == 2
    assert gauges[metrics.MODEL_QUEUE.name, ("org/big",)] == 5
    assert gauges[metrics.INSTANCES.name, ("host-a", "org/big", "starting")] == 1
    assert gauges[metrics.DEVICE_MEMORY.name, ("host-a", "gpu-1", "admitted")] == 4000
    assert gauges[metrics.DEVICE_MEMORY.name, ("host-a", "gpu-1", "foreign")] == 300
    assert gauges[metrics.VRAM_FREE.name, ("host-a", "gpu-1")] == 5500
    assert (metrics.VRAM_USED.name, ("host-a", "gpu-0")) not in gauges  # not measured
    assert gauges[metrics.UTILIZATION.name, ("host-a", "gpu-1")] == 70
    assert gauges[metrics.BACKOFF.name, ("host-a", "org/dies")] == 1
    assert gauges[metrics.JOBS.name, ("cortex-a", "failed")] == 1


def test_the_metrics_server_restarts_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = f"127.0.0.1:{free_port()}"
    port = MetricsServer(settings(listen), tmp_path)
    served = uvicorn.Server.serve
    broken: list[bool] = []

    async def break_once(self: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        if not broken:
            broken.append(True)
            raise ValueError("a fault")
        await served(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "serve", break_once)
    monkeypatch.setattr("cortex.router.metrics.server.STOP_S", 0.01)
    with port:
        answer = httpx.get(f"http://{listen}/metrics", trust_env=False, timeout=20)

    assert (answer.status_code, broken) == (200, [True])
