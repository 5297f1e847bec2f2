"""A master, a replica and three real Sentinels, which fail over within about two seconds."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis

from cortex.platform import embedded_redis
from tests.support.stack import eventually, free_port

MASTER = "mymaster"


class Sentinels:
    """Five servers that run."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self.folder, self.password = folder, password
        self.ports = [free_port() for _ in range(2)]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self.servers: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The address that cortex is given."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{f':{self.password}@' if self.password else ''}{hosts}/{MASTER}"

    def client(self, port: int) -> redis.Redis:
        """Return a client of one server."""
        password = self.password if port in self.ports else None
        return redis.Redis(port=port, password=password or None, socket_timeout=5)

    def master(self) -> int:
        """Return the port of the master, as the first Sentinel knows it."""
        with self.client(self.sentinel_ports[0]) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(MASTER)[1])

    def fail_over(self) -> None:
        """Have the Sentinels make the replica the master, as an operator does; the old master lives on as replica."""
        before = self.master()
        with self.client(self.sentinel_ports[0]) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER)
        eventually(lambda: self.master() != before, within_s=20, what="a failover")

    def kill_master(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End or halt the master at once, and return its port."""
        port = self.master()
        self.servers[port].send_signal(how)
        return port

    def _start(self, name: str, port: int, lines: list[str], *more: str) -> None:
        file = self.folder / f"{name}.conf"
        file.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {self.folder}", *lines]) + "\n")
        argv = [embedded_redis.server(), str(file), *more]
        self.servers[port] = subprocess.Popen(argv, stdout=(self.folder / f"{name}.log").open("wb"))

    def start(self) -> None:
        """Start all five, and wait until they know one another."""
        secret = [f"requirepass {self.password}", f"masterauth {self.password}"] if self.password else []
        first, second = self.ports
        for name, port, more in (("one", first, []), ("two", second, [f"replicaof 127.0.0.1 {first}"])):
            quick = ['save ""', "repl-diskless-sync-delay 0", "repl-ping-replica-period 1", f"dbfilename {name}.rdb"]
            self._start(name, port, [*secret, *quick, *more])
            eventually(lambda port=port: self._answers(port), what=f"redis {name}")  # type: ignore[misc]
        with self.client(second) as replica:
            eventually(lambda: replica.info("replication")["master_link_status"] == "up", what="the replica")
        for nth, port in enumerate(self.sentinel_ports):
            lines = [
                f"sentinel monitor {MASTER} 127.0.0.1 {first} 2",
                f"sentinel down-after-milliseconds {MASTER} 700",
                f"sentinel failover-timeout {MASTER} 3000",
                *([f"sentinel auth-pass {MASTER} {self.password}"] if self.password else []),
            ]
            self._start(f"sentinel{nth}", port, lines, "--sentinel")
        for port in self.sentinel_ports:
            eventually(lambda port=port: self._is_ready(port), within_s=20, what="a Sentinel")  # type: ignore[misc]

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(redis.ConnectionError), self.client(port) as client:
            return bool(client.ping())
        return False

    def _is_ready(self, port: int) -> bool:
        """Whether a Sentinel knows the two others and the replica."""
        with contextlib.suppress(redis.ConnectionError), self.client(port) as client:
            state = client.sentinel_master(MASTER)
            return int(state["num-other-sentinels"]) == 2 and int(state["num-slaves"]) == 1
        return False

    def end(self) -> None:
        """End them all."""
        for server in self.servers.values():
            server.kill()
        for server in self.servers.values():
            server.wait(5)


@contextlib.contextmanager
def sentinels(folder: Path, password: str = "") -> Iterator[Sentinels]:
    """Run a master, a replica and three Sentinels."""
    fleet = Sentinels(folder, password)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.end()
