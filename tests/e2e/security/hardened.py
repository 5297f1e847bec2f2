"""A fleet with all protections: users and TLS at Redis, TLS everywhere, a separate user for workers, a token for each
host.

One agent, its job worker and a router of one process; `http` sends an admin key.
"""

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import trustme

from cortex.platform.api_keys import PREFIX, ApiKey, Priority, Scope, digest
from cortex.platform.keys import host_file, host_token, worker_key
from cortex.platform.registry import Registry
from tests.e2e.security.keyed import Result, command
from tests.support.catalogues import entry, fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.secured_redis import PASSWORDS, SecuredRedis, password, secured_redis
from tests.support.stack import eventually, free_port

PLAIN = Path(__file__).parents[2] / "support" / "plain_server.py"
CATALOGUE = "\n".join(
    [
        fake("fake/one", "--answer", "one"),
        fake("fake/after", "--answer", "after"),
        # Real llama.cpp, one request at a time.
        entry("real/one", engine="llamacpp", source="demo:harbour", target_concurrency=1, context=1024),
    ]
)


def write(authority: trustme.CA, folder: Path, name: str) -> dict[str, str]:
    """Write a certificate for loopback and its key, each in one step; return their paths."""
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    for path, content in ((key, certificate.private_key_pem.bytes()), (cert, certificate.cert_chain_pems[0].bytes())):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    return {"cert": str(cert), "key": str(key)}


class Hardened(Fleet):
    """A running one; `authority` signs its certificates."""

    def __init__(self, folder: Path, record: SecuredRedis, authority: trustme.CA) -> None:
        self.record, self.authority = record, authority
        router, agent = write(authority, folder, "router"), write(authority, folder, "agent")
        for name, word in PASSWORDS.items():
            (folder / name).write_text(word + "\n")
            (folder / name).chmod(0o600)
        secrets_of_the_agent = [
            *(str(folder / f) for f in ("token", "host-a.token", "redis-a.password")),
            "/etc/shadow",
        ]
        command = [
            "/usr/bin/python3",
            str(PLAIN),
            "{model}",
            "{port}",
            "{key_file}",
            *secrets_of_the_agent,
            "/etc/passwd",
        ]
        super().__init__(
            folder,
            record.admin_url,
            CATALOGUE + entry("own/user", engine="command", command=command, labels=["own-user"]),
            {
                "a": {
                    **self._record_of("a", folder, record),
                    "CORTEX_AGENT__TLS_CERT": agent["cert"],
                    "CORTEX_AGENT__TLS_KEY": agent["key"],
                }
            },
        )
        self.url = self.url.replace("http://", "https://")
        trusted = {"CORTEX_CA_FILE": str(folder / "ca.pem")}
        self._agent_env["a"] |= trusted | self._own_token("a")
        self.write_tokens(TOKEN)
        self.env |= trusted | {
            "CORTEX_GATEWAY__TRUSTED_PROXIES": '["127.0.0.1"]',
            "CORTEX_GATEWAY__METRICS_LISTEN": f"127.0.0.1:{free_port()}",
            "CORTEX_URL": self.url,
            "CORTEX_REDIS_URL": record.url("cortex-router"),
            "CORTEX_REDIS__PASSWORD_FILE": str(folder / "cortex_redis_router_password"),
            "CORTEX_GATEWAY__TLS_CERT": router["cert"],
            "CORTEX_GATEWAY__TLS_KEY": router["key"],
        }
        self.context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
        self.keys = {"admin": secret, "high": f"{PREFIX}high-5511", "low": f"{PREFIX}low-8a02"}
        self.http = httpx.Client(
            base_url=self.url,
            timeout=60,
            trust_env=False,
            verify=self.context,
            headers={"authorization": f"Bearer {secret}"},
        )

    @staticmethod
    def _record_of(name: str, folder: Path, record: SecuredRedis) -> dict[str, str]:
        """Return a host's way to the record, as its own user."""
        user, file = f"cortex-host-{name}", folder / f"redis-{name}.password"
        file.write_text(password(user) + "\n")
        file.chmod(0o600)
        return {"CORTEX_REDIS_URL": record.url(user), "CORTEX_REDIS__PASSWORD_FILE": str(file)}

    def _own_token(self, name: str) -> dict[str, str]:
        """Return a host's way to its own token. It has no fleet token."""
        own = str(self.folder / f"host-{name}.token")
        return {"CORTEX_AGENT__TOKEN_FILE": own, "CORTEX_TOKEN_FILE": str(self.folder / "none")}

    def write_tokens(self, *tokens: str) -> None:
        """Write the fleet's token file, then each host's own."""
        (self.folder / "token").write_text("".join(f"{token}\n" for token in tokens))
        for name in self._agent_env:
            path = self.folder / f"host-{name}.token"
            path.write_text(host_file(tokens, name))
            path.chmod(0o600)

    def __enter__(self) -> Self:
        known = {name: digest(secret) for name, secret in self.keys.items()}
        keys = [
            ApiKey(digest=known["admin"], id="ops", name="ops", scope=Scope.ADMIN),
            ApiKey(digest=known["high"], id="high", name="high", priority=Priority.HIGH),
            ApiKey(digest=known["low"], id="low", name="low", priority=Priority.LOW),
        ]
        asyncio.run(self._written(keys))
        return super().__enter__()

    async def _written(self, keys: list[ApiKey]) -> None:
        registry = Registry(self.record.admin_url)
        await registry.api_keys.put(*keys)
        await registry.close()

    def start_agent(self, name: str) -> None:
        """Start a host's agent and its job worker."""
        super().start_agent(name)
        self._start("jobs", ["jobs"], self._agent_env[name])

    def join(self, name: str, **settings: str) -> None:
        """Have another host join, with settings of its own."""
        own = {
            "CORTEX_AGENT__NAME": name,
            "CORTEX_AGENT__LISTEN": f"127.0.0.1:{free_port()}",
            "CORTEX_AGENT__STATE_DIR": str(self.folder / f"state-{name}"),
            "CORTEX_AGENT__LOG_DIR": str(self.folder / f"logs-{name}"),
        }
        own |= self._record_of(name, self.folder, self.record)
        self._agent_env[name] = {**self._agent_env["a"], **own, **self._own_token(name), **settings}
        self.write_tokens(*(self.folder / "token").read_text().split())
        Fleet.start_agent(self, name)
        eventually(lambda: name in self._hosts(), within_s=30, what=f"{name} to be known")

    def metrics(self) -> str:
        """Return what Prometheus reads of the router."""
        return httpx.get(f"http://{self.env['CORTEX_GATEWAY__METRICS_LISTEN']}/metrics", trust_env=False).text

    def ask_with(self, key: str, model: str, request_id: str = "", **more: Any) -> httpx.Response:
        """Ask with a key."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], **more}
        headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def run(self, *arguments: str) -> Result:
        """Run a `cortex` command in this process, with the admin key."""
        return command(self.env, *arguments, key=self.keys["admin"])

    @property
    def token(self) -> str:
        """The fleet token that is used now."""
        return (self.folder / "token").read_text().split()[0]

    def agent(self, method: str, path: str, token: str | None = None, **rest: Any) -> httpx.Response:
        """Ask the agent something, with the fleet token or another; "" sends none."""
        url = f"https://{self._agent_env['a']['CORTEX_AGENT__LISTEN']}{path}"
        sent = self.token if token is None else token
        return self.http.request(method, url, headers={"authorization": f"Bearer {sent}" if sent else ""}, **rest)

    def worker_keys(self) -> list[str]:
        """Return the keys of all workers that run."""
        hosts = [host_token(token, name) for token in (TOKEN, self.token) for name in self._agent_env]
        return [worker_key(own, instance) for own in hosts for instance in self.instances_of_workers()]

    def processes_of_ours(self) -> list[psutil.Process]:
        """Return every process that is not a worker."""
        running = [psutil.Process(p.pid) for p in self.processes.values() if p.poll() is None]
        return [p for one in running for p in (one, *one.children(recursive=True)) if p not in self.workers()]

    def texts(self) -> dict[str, str]:
        """Return all that the processes, workers included, have written or show of themselves, by where it is."""
        matches = {str(p): p.read_text(errors="replace") for p in self.folder.rglob("*.log")}
        for process in (*self.workers(), *self.processes_of_ours()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                matches[f"argv of {process.pid}"] = " ".join(process.cmdline())
        return matches

    def environments(self) -> dict[str, str]:
        """Return the environment of every process."""
        matches = {}
        for process in (*self.workers(), *self.processes_of_ours()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                matches[repr(process)] = repr(process.environ())
        return matches


@contextlib.contextmanager
def hardened_fleet(folder: Path) -> Iterator[Hardened]:
    """Run one."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    own = write(authority, folder, "redis")
    with secured_redis(folder, **own) as record, Hardened(folder, record, authority) as running:
        yield running
