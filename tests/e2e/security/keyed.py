"""A running cortex with API keys."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.support.catalogues import aliases, fake
from tests.support.command import run
from tests.support.stack import Stack, eventually, own_redis

CATALOGUE = "\n".join(
    [
        fake("one/open", "--answer", "one two three"),
        fake("one/slow", "--tps", "10", "--tokens", "30"),
        fake("one/late", "--ttft-s", "60"),
        fake("one/long", "--tps", "10", "--tokens", "100"),
        fake("one/drips", "--tps", "10", "--tokens", "600"),
        fake("one/fails", "--fail-status", "400"),
        fake("one/dictation", "--answer", "one two", task="transcribe"),
        fake("one/loads", "--load-s", "600", task="transcribe"),
        fake("one/speaks", task="speech"),
        fake("one/draws", task="image"),
        fake("two/hears", task="transcribe"),
        fake("two/other", "--answer", "four"),
        aliases({"mine": "one/open", "theirs": "two/other"}),
    ]
)

ENV = {"CORTEX_GATEWAY__RESPONSES_TTL_S": "600"}


class Result(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def command(env: Mapping[str, str], *arguments: str, key: str = "") -> Result:
    """Run a `cortex` command."""
    done = run({**env, "CORTEX_API_KEY": key}, *arguments)
    return Result(done.returncode, done.stdout, done.stderr)


class Keyed:
    """The stack, its keys by what they are for, and clients that send them."""

    def __init__(self, stack: Stack, redis_url: str) -> None:
        self.stack, self.url, self.redis_url = stack, stack.url, redis_url
        self.keys = {"local": stack.local_key()}
        self.keys["inference"] = self.make("inference", functions=["one/*"])
        self.keys["other"] = self.make("other", functions=["two/*"])
        self.keys["status"] = self.make("status", scope="status")
        self.keys["admin"] = self.make("admin", scope="admin")

    def make(self, name: str, **wanted: Any) -> str:
        """Make a key, and return it."""
        with self.client("local") as http:
            answer = http.post("/admin/keys", json={"name": name, **wanted})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def cli(self, *arguments: str, key: str = "") -> Result:
        """Run a `cortex` command."""
        return command(self.stack.env, *arguments, key=key)

    def client(self, key: str = "", **rest: Any) -> httpx.Client:
        """Return a client that sends a key: the name of one, or the key itself; nothing sends none."""
        secret = self.keys.get(key, key)
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, **rest)

    def ask(self, key: str, model: str = "one/open", **more: Any) -> httpx.Response:
        """Ask a model for an answer."""
        with self.client(key) as http:
            body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], **more}
            return http.post("/v1/chat/completions", json=body)

    def everywhere(self, key: str, status: int) -> None:
        """Wait until every router worker answers a key so: several times over, on connections of their own."""
        eventually(
            lambda: all(self.ask(key, max_tokens=1).status_code == status for _ in range(6)),
            within_s=5,
            what=f"{status} from every worker",
        )


@contextlib.contextmanager
def started(folder: Path, workers: int = 2, catalogue: str = CATALOGUE) -> Iterator[Keyed]:
    """Run one."""
    with own_redis(folder) as redis_url:
        stack = Stack(folder, catalogue, workers=workers, env={"CORTEX_REDIS_URL": redis_url, **ENV})
        try:
            keyed = Keyed(stack, redis_url)
            keyed.everywhere("admin", 200)  # the last one made: a worker reads all keys at once
            yield keyed
        finally:
            stack.end()
