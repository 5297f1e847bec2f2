"""Listeners from a service manager, and notifications to it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.platform.serving import systemd
from tests.support.activation import activated

ACCEPTS_ONE = """
from cortex.platform.serving import systemd
passed = systemd.listeners()
client, _ = passed["http"].accept()
client.sendall(",".join(passed).encode())
"""


def test_a_passed_listener_is_found_by_name_and_serves_earlier_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        early = socket.create_connection(held.getsockname(), timeout=30)
        started = activated([sys.executable, "-c", ACCEPTS_ONE], dict(os.environ), held)
        child = subprocess.run(**started, timeout=30, check=True)

        assert child.returncode == 0
        assert early.recv(100) == b"http"
        early.close()


def test_listeners_for_another_process_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")

    assert systemd.listeners() == {}


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_notify_reaches_the_service_manager(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"cortex-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)

        systemd.notify("READY=1", "STATUS=well")

        assert manager.recv(1000) == b"READY=1\nSTATUS=well"


def test_without_a_service_manager_notify_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    systemd.notify("READY=1")
