"""Text from workers stays on their host: a unique word is searched for everywhere else."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis

from tests.e2e.security.keyed import Keyed
from tests.support.catalogues import entry
from tests.support.stack import Stack, eventually, free_port, own_redis

pytestmark = [pytest.mark.xdist_group("worker-words"), pytest.mark.long]

MARK = "vq7marked"
WAYS = ("refused", "failed", "forbidden", "broken", "cut", "garbled", "nonsense", "encoded", "dying")
ODD = [sys.executable, str(Path(__file__).parents[2] / "support" / "odd_worker.py"), "{port}", "{model}"]
DIES = [sys.executable, "-c", "print('vq7' + 'marked: out of memory'); raise SystemExit(3)", "{port}"]
NAMED = [*ODD, r'"\u0076q7marked"']
"""Neither command line holds the word itself: pages show those."""
CATALOGUE = "\n".join(
    entry(f"one/{name}", engine="command", command=command, dialects=["chat"], vram_mb=50, idle_after_s=600)
    for name, command in (("odd", ODD), ("named", NAMED), ("dies", DIES))
)


class Words:
    """A cortex of two router workers whose workers have repeated a marked prompt in every way there is."""

    def __init__(self, keyed: Keyed, metrics: str) -> None:
        self.keyed, self.metrics = keyed, metrics
        self.answers = {
            f"{way}-{stream}": self.ask("one/odd", f"{MARK} {way}", f"{way}-{stream}", stream)
            for way in WAYS
            for stream in (False, True)
        }
        self.answers |= {name: self.ask(f"one/{name}", "hello", name, stream=False) for name in ("named", "dies")}

    def ask(self, model: str, text: str, id: str, stream: bool) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
        with self.keyed.client("inference") as http:
            return http.post("/v1/chat/completions", json=body, headers={"x-request-id": id})

    def _text(self, http: httpx.Client, path: str) -> str:
        answer = http.get(path)
        return answer.text if answer.is_success else ""

    def everywhere(self) -> dict[str, str]:
        """Return all that a status key reads, all of Redis, every write to it (its append-only file), and every log and
        state file but the workers' own."""
        functions = ("one/odd", "one/named", "one/dies")
        paths = [
            *("/health", "/status", "/status/host/here"),
            *(f"/admin/{p}" for p in ("functions", "hosts", "instances", "decisions", "requests", "traffic", "jobs")),
            *(f"{p}/{f.replace('/', '%2F')}" for p in ("/admin/functions", "/status/function") for f in functions),
            *(f"/admin/requests/{id}" for id in self.answers),
        ]
        with self.keyed.client("status") as http:
            # A router worker of a busy machine may be late with its answer to the other: its requests are missing then.
            matches = {p: eventually(partial(self._text, http, p), within_s=20, what=p) for p in paths}
            matches["metrics"] = httpx.get(self.metrics, headers=http.headers, trust_env=False).raise_for_status().text
        with redis.Redis.from_url(self.keyed.redis_url) as client:
            matches["Redis"] = repr([(name, client.dump(name)) for name in client.scan_iter()])
        folder = self.keyed.stack.folder
        files = [p for p in folder.rglob("*") if p.is_file() and "workers" not in p.relative_to(folder).parts]
        return matches | {str(p): p.read_bytes().decode("utf-8", "replace") for p in files}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Words]:
    folder = tmp_path_factory.mktemp("words")
    metrics = f"127.0.0.1:{free_port()}"
    with own_redis(folder) as redis_url:
        env = {"CORTEX_REDIS_URL": redis_url, "CORTEX_GATEWAY__METRICS_LISTEN": metrics}
        stack = Stack(folder, CATALOGUE, workers=2, env=env)
        try:
            yield Words(Keyed(stack, redis_url), f"http://{metrics}/metrics")
        finally:
            stack.end()


def test_text_from_workers_stays_on_its_host(words: Words) -> None:
    result = words.everywhere()

    assert [where for where, text in result.items() if MARK in text] == []
    # What is searched is there: the requests, their tries, the failures and the answers between routers.
    assert "exited with code 3 while starting: out of memory" in result["/admin/hosts"]
    assert "serves 1 other model instead of one/named" in result["/admin/functions/one%2Fnamed"]
    assert '"tries":[{' in result["/admin/requests/broken-False"]
    assert any("broken-False" in text for path, text in result.items() if path.endswith(".aof"))
    assert any("worker_ended" in text for path, text in result.items() if path.endswith("agent.log"))
    assert any("broken-True" in text for path, text in result.items() if path.endswith("router.log"))


def test_the_client_of_a_request_gets_its_workers_text(words: Words) -> None:
    assert MARK in words.answers["refused-False"].json()["error"]["message"]
    assert MARK in words.answers["forbidden-False"].json()["error"]["message"]


@pytest.mark.parametrize("name", ["dies", "named"])
def test_only_an_admin_reads_a_failed_workers_log(words: Words, name: str) -> None:
    with words.keyed.client("status") as http:
        failed = http.get(f"/admin/functions/one%2F{name}").json()["failed_instance"]
        refused = http.get(f"/admin/instances/{failed}/logs").status_code
    with words.keyed.client("admin") as http:
        log = http.get(f"/admin/instances/{failed}/logs").raise_for_status().text
    shown = words.keyed.cli("fn", "show", f"one/{name}", key=words.keyed.keys["admin"]).stdout
    with_less = words.keyed.cli("fn", "show", f"one/{name}", key=words.keyed.keys["status"]).stdout

    assert refused == 403
    assert MARK in log
    assert MARK in shown
    assert "last failure" in with_less
    assert MARK not in with_less


def test_an_error_for_an_inference_key_has_no_host_or_exit_code(
    words: Words,
) -> None:
    answer = words.answers["dies"]
    with words.keyed.client("status") as http:
        rows = eventually(lambda: http.get("/admin/requests/dies").json().get("requests"), what="the request")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "start_failed")
    assert answer.json()["error"]["message"] == (
        "'one/dies' did not start; an operator can look up why by the request's id"
    )
    assert "exited with code 3 while starting: out of memory" in rows[0]["why"]
    for broken in ("broken-False", "broken-True", "dying-False"):
        assert "127.0.0.1" not in words.answers[broken].text
        assert "here" not in words.answers[broken].text
