"""A Redis as in the deployment: its users with their rights, and TLS.

The users' file is the deployment's template. A server that was built without TLS (the one that comes along with
cortex) gets a tunnel before it.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import jinja2
import redis

from cortex.platform import embedded_redis
from tests.support.stack import eventually, free_port

TEMPLATES = Path(__file__).parents[2] / "deploy/ansible/roles/redis/templates"
HOSTS = ("a", "b")
"""The hosts that have a user."""
PASSWORDS = {
    "cortex_redis_router_password": "routers-word-7f3a",
    "cortex_redis_password": "hosts-word-91bc",
    "cortex_redis_admin_password": "admins-word-55de",
}


def users(*, reads_apart: bool = True) -> str:
    """Return the users' file as the deployment writes it."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    known = {"groups": {"agents": HOSTS}, "hostvars": {h: {} for h in HOSTS}, "redis_reads_apart": reads_apart}
    texts = [(TEMPLATES / name).read_text() for name in ("users.acl.j2", "hosts.acl.j2")]
    return "".join(environment.from_string(text).render(PASSWORDS, **known) for text in texts)


def password(user: str) -> str:
    """Return a user's password, as the deployment derives it."""
    if user == "cortex-router":
        return PASSWORDS["cortex_redis_router_password"]
    name = user.removeprefix("cortex-host-")
    return hashlib.sha256(f"{PASSWORDS['cortex_redis_password']} of host {name}".encode()).hexdigest()


def server() -> str:
    """Return a server that can keep reading and writing apart where this machine has one, else the one there is."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    matches = [path for folder in folders if (path := shutil.which("redis-server", path=folder))]
    return next(filter(reads_apart, matches), None) or embedded_redis.server()


def reads_apart(binary: str) -> bool:
    """Whether a server can let a user read what it may not write: Redis since 7, and Valkey."""
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=(\d+)", output)
    return match is not None and int(match[1]) >= 7


class SecuredRedis:
    """A running one."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._socket, self.port, self.pid = folder, folder / "s.sock", port, 0
        self.binary = server()
        self.reads_apart = reads_apart(self.binary)
        self.admin_url = f"unix://admin:{PASSWORDS['cortex_redis_admin_password']}@{self._socket}"

    def url(self, user: str) -> str:
        """Return the address for a user, whose password is said elsewhere."""
        return f"rediss://{user}@127.0.0.1:{self.port}/0"

    def refused(self) -> set[str]:
        """Return what users were not allowed to do."""
        with redis.Redis.from_url(self.admin_url, decode_responses=True) as client:
            return {f"{e['username']}: {e['reason']} {e['object']}" for e in client.acl_log()}

    def everything(self) -> str:
        """Return all that is in it."""
        with redis.Redis.from_url(self.admin_url) as client:
            return repr([(name, client.dump(name)) for name in client.scan_iter()])

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Have it accept and not answer for a while."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def anonymous(self) -> redis.Redis:
        """Return a client that authenticates as nobody."""
        return redis.Redis(unix_socket_path=str(self._socket), protocol=2)

    def may(self, user: str, *command: str) -> bool:
        """Whether a user may do something; it is done."""
        with redis.Redis.from_url(f"unix://{user}:{password(user)}@{self._socket}") as client:
            try:
                client.execute_command(*command)
            except redis.exceptions.NoPermissionError:
                return False
        return True


@contextlib.contextmanager
def secured_redis(folder: Path, cert: str, key: str) -> Iterator[SecuredRedis]:
    """Run one with this certificate."""
    running = SecuredRedis(folder, free_port())
    plain = _plain(running)
    by_tls = [
        "--tls-port",
        str(running.port),
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-auth-clients",
        "no",
    ]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_running([*plain, *by_tls], running.admin_url))
        if server.poll() is not None:  # it does not know the words
            server = stack.enter_context(_running(plain, running.admin_url))
            stack.enter_context(_tunnel(running.port, running._socket, cert, key))
        running.pid = server.pid
        yield running


@contextlib.contextmanager
def local_redis(folder: Path) -> Iterator[SecuredRedis]:
    """Run one on its unix socket alone. At the end it is killed; the next one in the folder loads its file."""
    running = SecuredRedis(folder, 0)
    with _running(_plain(running), running.admin_url) as server:
        assert server.poll() is None
        running.pid = server.pid
        yield running


def _plain(secured: SecuredRedis) -> list[str]:
    """Write the users' file and return the argv of a server without TLS."""
    path = secured._folder / "users.acl"
    path.write_text(users(reads_apart=secured.reads_apart))
    return [*embedded_redis.command(secured.binary, secured._folder, secured._socket), "--aclfile", str(path)]


@contextlib.contextmanager
def _running(argv: list[str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: server.poll() is not None or _answers(url), what="redis")
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGKILL)
        server.wait(5)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextlib.contextmanager
def _tunnel(port: int, socket: Path, cert: str, key: str) -> Iterator[None]:
    """Speak TLS on a port for a server behind a socket."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(passed(reader, back), passed(there, writer))

    async def serve() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", port, ssl=context):
            ready.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def end() -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(5)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
        thread.join(5)
