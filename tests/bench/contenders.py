"""The servers that are compared, each with its processes: nginx, a bare relay, cortex, and others."""

import contextlib
import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from msgspec import Struct

from tests.support.stack import free_port

SERVER = [sys.executable, "-m", "tests.bench.servers"]
NGINX = """daemon off; worker_processes 1; error_log stderr error; pid {folder}/nginx.pid;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 64m; client_body_buffer_size 16m;
  upstream worker {{ server 127.0.0.1:{worker}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://worker; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
LITELLM = """model_list:
- {{model_name: bench, litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{worker}/v1", api_key: x}}}}
"""


class Contender(Struct, frozen=True):
    """A server under test; `process` is None for one that was started elsewhere."""

    name: str
    url: str
    process: psutil.Process | None = None
    translates: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether its process has ended, so that it will not answer."""
        return self.process is not None and (
            not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE
        )

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes and threads so far."""
        return sum(_cpu_s(process.pid) for process in self._processes())

    def memory_mb(self) -> float:
        """Return the memory of all its processes, shared pages once for each."""
        return sum(process.memory_info().rss for process in self._processes()) / (1 << 20)

    def _processes(self) -> list[psutil.Process]:
        return [] if self.process is None else [self.process, *self.process.children(recursive=True)]


def _cpu_s(pid: int) -> float:
    """Return a process's CPU time in nanoseconds' resolution (proc(5), schedstat)."""
    total = 0.0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):  # noqa: PTH207 (a path of /proc)
        with contextlib.suppress(OSError):
            total += int(Path(path).read_text().split()[0]) / 1e9
    return total


@contextlib.contextmanager
def running(argv: Sequence[str], env: dict[str, str], log: Path, cpus: Sequence[int] = ()) -> Iterator[psutil.Process]:
    """Run a process, on its own CPUs if they are given, and end it."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output)
    if cpus:
        os.sched_setaffinity(process.pid, cpus)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@contextlib.contextmanager
def worker(folder: Path, cpus: Sequence[int]) -> Iterator[int]:
    """Run the upstream that all contenders share; yield its port."""
    port = free_port()
    with running([*SERVER, "worker", str(port)], plain_env(), folder / "worker.log", cpus):
        yield port


@contextlib.contextmanager
def relay(folder: Path, upstream: int, cpus: Sequence[int]) -> Iterator[Contender]:
    """Run the bare relay: ASGI in, aiohttp out."""
    port = free_port()
    argv = [*SERVER, "proxy", str(port), f"http://127.0.0.1:{upstream}"]
    with running(argv, plain_env(), folder / "relay.log", cpus) as process:
        yield Contender("relay", f"http://127.0.0.1:{port}", process)


@contextlib.contextmanager
def nginx(folder: Path, upstream: int, cpus: Sequence[int]) -> Iterator[Contender]:
    """Run nginx with one worker process."""
    program, port = shutil.which("nginx"), free_port()
    assert program is not None
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, worker=upstream, port=port))
    with running([program, "-c", str(config), "-p", str(folder)], plain_env(), folder / "nginx.log", cpus) as process:
        yield Contender("nginx", f"http://127.0.0.1:{port}", process)


@contextlib.contextmanager
def cortex(
    folder: Path, env: dict[str, str], workers: int, cpus: Sequence[int], argv: Sequence[str]
) -> Iterator[Contender]:
    """Run a router with so many worker processes."""
    port, name = free_port(), "cortex" if workers == 1 else f"cortex, {workers} workers"
    own = {
        "XDG_STATE_HOME": str(folder / f"state-{workers}"),
        "CORTEX_GATEWAY__LISTEN": f"127.0.0.1:{port}",
        "CORTEX_GATEWAY__METRICS_LISTEN": f"127.0.0.1:{free_port()}",
    }
    log = folder / f"cortex-{workers}.log"
    with running([*argv, "router", "--workers", str(workers)], {**plain_env(), **env, **own}, log, cpus) as process:
        yield Contender(name, f"http://127.0.0.1:{port}", process, translates=True)


@contextlib.contextmanager
def litellm(folder: Path, upstream: int, cpus: Sequence[int]) -> Iterator[Contender]:
    """Run LiteLLM's proxy, which `uvx` installs at its first use."""
    port, config = free_port(), folder / "litellm.yaml"
    config.write_text(LITELLM.format(worker=upstream))
    argv = ["uvx", "--from", "litellm[proxy]", "litellm", "--config", str(config), "--port", str(port)]
    env = plain_env() | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices, for half a minute offline
        "LITELLM_MASTER_KEY": "sk-bench",  # that of the requests; without one it does not start
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with running(argv, env, folder / "litellm.log", cpus) as process:
        yield Contender("litellm", f"http://127.0.0.1:{port}", process, translates=True)


def plain_env() -> dict[str, str]:
    """Return the environment without cortex's settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
