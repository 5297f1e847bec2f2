"""Batches, by the SDKs' own helpers, and through the deaths of everything they need."""

import contextlib
import json
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import openai
import psutil
import pytest
from anthropic.types.messages.batch_create_params import Request as MessageRequest
from openai.types import Batch

from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually

T = TypeVar("T")
CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
BATCH_S = 60.0
REQUESTS = 150
"""Of each measurement of latencies."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A cortex whose files are small."""
    catalogue = [
        fake("fake/steps", "--answer", "one two three"),
        fake("fake/slow", "--tps", "40", "--tokens", "40", target_concurrency=1),
        fake("fake/never", "--tps", "1", "--tokens", "1000", target_concurrency=1),
        fake("fake/fails", "--fail-status", "500"),
        fake("fake/shared", "--tps", "100", "--tokens", "30", target_concurrency=8),
    ]
    running = Stack(
        tmp_path_factory.mktemp("batches"),
        "\n".join(catalogue),
        env={"CORTEX_GATEWAY__FILE_MAX_MB": "1", "CORTEX_GATEWAY__BATCH_MAX_LINES": "6000"},
    )
    try:
        yield running
    finally:
        running.end()


def client_of(stack: Stack, key: str = "") -> openai.OpenAI:
    """Return OpenAI's client, by default of this machine's user."""
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key or stack.local_key(), max_retries=0)


def key_named(stack: Stack, name: str, **more: Any) -> str:
    """Make an API key."""
    return str(stack.http.post("/admin/keys", json={"name": name, **more}).json()["key"])


def line(id: str, model: str = "fake/steps", **more: Any) -> dict[str, Any]:
    """Return a line of a batch."""
    body = {"model": model, "messages": [{"role": "user", "content": f"say {id}"}]}
    return {"custom_id": id, "method": "POST", "url": CHAT, "body": body, **more}


def submit(client: openai.OpenAI, lines: list[dict[str, Any]] | bytes, endpoint: Any = CHAT) -> Batch:
    """Upload lines, and have a batch made of them."""
    content = lines if isinstance(lines, bytes) else b"".join(json.dumps(entry).encode() + b"\n" for entry in lines)
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def ended(client: openai.OpenAI, batch: Batch, within_s: float = BATCH_S) -> Batch:
    """Wait for the end of a batch."""

    def look() -> Batch | None:
        now = client.batches.retrieve(batch.id)
        return now if now.status in ENDED else None

    result = eventually(look, within_s=within_s, what=f"the end of {batch.id}")
    assert result is not None
    return result


def done(client: openai.OpenAI, batch: Batch) -> int:
    """Return how many lines of a batch have answers."""
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def results(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    return [json.loads(text) for text in client.files.content(file).text.splitlines()] if file else []


def test_a_batch_of_openais_sdk_answers_each_line_once(stack: Stack) -> None:
    client = client_of(stack)
    ids = [f"line-{i}" for i in range(40)]

    batch = ended(client, submit(client, [line(id) for id in ids]))

    answers = results(client, batch.output_file_id)
    assert batch.status == "completed"
    assert sorted(a["custom_id"] for a in answers) == sorted(ids)
    assert {a["response"]["body"]["choices"][0]["message"]["content"] for a in answers} == {"one two three"}
    assert batch.error_file_id is None
    assert client.batches.list(limit=1).data[0].id == batch.id


def test_a_message_batch_of_anthropics_sdk_answers_each_request_once(stack: Stack) -> None:
    client = anthropic.Anthropic(base_url=stack.url, api_key=stack.local_key(), max_retries=0)
    ask: Any = [{"role": "user", "content": "Hello"}]
    requests: Any = [
        *(
            MessageRequest(custom_id=f"m{i}", params={"model": "fake/steps", "max_tokens": 9, "messages": ask})
            for i in range(5)
        ),
        MessageRequest(custom_id="wrong", params={"model": "no/such", "max_tokens": 9, "messages": ask}),
    ]

    batch = client.messages.batches.create(requests=requests)
    eventually(lambda: client.messages.batches.retrieve(batch.id).processing_status == "ended", within_s=BATCH_S)

    received = {r.custom_id: r.result for r in client.messages.batches.results(batch.id)}
    succeeded = [r.message.content[0] for id, r in received.items() if id != "wrong" and r.type == "succeeded"]
    assert [getattr(block, "text", "") for block in succeeded] == ["one two three"] * 5
    assert received["wrong"].type == "errored"
    assert received["wrong"].error.error.type == "not_found_error"
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.errored) == (5, 1)
    assert client.messages.batches.list(limit=1).data[0].id == batch.id
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)


def test_a_line_that_fails_for_good_is_in_the_error_file_with_its_status(stack: Stack) -> None:
    client = client_of(stack)

    batch = ended(client, submit(client, [line("good"), line("unknown", "no/such"), line("broken", "fake/fails")]))

    errors = {e["custom_id"]: e["response"]["status_code"] for e in results(client, batch.error_file_id)}
    assert [a["custom_id"] for a in results(client, batch.output_file_id)] == ["good"]
    assert errors == {"unknown": 404, "broken": 502}


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"no json\n", "invalid_json_line", 1),
        (json.dumps(line("a", url="/v1/nothing")).encode(), "invalid_url", 1),
        (json.dumps(line("a", method="GET")).encode(), "invalid_method", 1),
        (json.dumps(line("a", url="/v1/embeddings")).encode(), "mismatched_url", 1),
        (b"\n".join([json.dumps(line("a")).encode()] * 2), "duplicate_custom_id", 2),
        (json.dumps(line("a", body={"model": "fake/steps", "stream": True})).encode(), "stream_in_batch", 1),
    ],
)
def test_a_file_that_is_no_batch_fails_with_the_line(
    stack: Stack, content: bytes, code: str, number: int | None
) -> None:
    client = client_of(stack)

    batch = ended(client, submit(client, content))

    assert batch.errors is not None and batch.errors.data
    assert (batch.status, batch.errors.data[0].code, batch.errors.data[0].line) == ("failed", code, number)
    assert batch.output_file_id is None


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(stack: Stack) -> None:
    with pytest.raises(openai.APIStatusError, match="file_max_mb") as refusal:
        client_of(stack).files.create(file=("big.jsonl", b"x" * (2 << 20)), purpose="batch")

    assert refusal.value.status_code == 413
    assert list((files_of(stack) / "uploads").iterdir()) == []


def test_another_keys_files_and_batches_do_not_exist(stack: Stack) -> None:
    owner, other = client_of(stack, key_named(stack, "owner")), client_of(stack, key_named(stack, "other"))
    batch = submit(owner, [line("a")])
    ended(owner, batch)

    with pytest.raises(openai.NotFoundError):
        other.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(batch.input_file_id)
    with pytest.raises(openai.NotFoundError):
        other.files.retrieve("../../owner")
    assert list(other.files.list()) == []


def test_files_are_private(stack: Stack) -> None:
    client = client_of(stack)
    ended(client, submit(client, [line("a")]))

    modes = {stat.S_IMODE(p.stat().st_mode) for p in files_of(stack).rglob("*")}

    assert modes == {0o600, 0o700}


def test_a_cancelled_batch_keeps_its_answers_and_says_which_lines_were_not_sent(stack: Stack) -> None:
    client = client_of(stack)
    batch = submit(client, [line("first"), *(line(f"n{i}", "fake/never") for i in range(5))])
    eventually(lambda: done(client, batch) == 1, within_s=BATCH_S, what="the first answer")

    client.batches.cancel(batch.id)
    now = ended(client, batch)

    codes = {e["custom_id"]: e["error"]["code"] for e in results(client, now.error_file_id)}
    assert now.status == "cancelled"
    assert [a["custom_id"] for a in results(client, now.output_file_id)] == ["first"]
    assert codes == {f"n{i}": "batch_cancelled" for i in range(5)}


def test_a_revoked_key_stops_its_batch(stack: Stack) -> None:
    client = client_of(stack, key_named(stack, "leaves"))
    batch = submit(client, [line(f"n{i}", "fake/slow") for i in range(50)])
    eventually(lambda: done(client, batch) > 0, within_s=BATCH_S, what="the first answer")

    stack.http.post("/admin/keys/leaves/revoke")

    view = eventually(lambda: _of(stack, batch.id, "failed"), within_s=BATCH_S, what="the end")
    assert view is not None
    assert view["problems"][0]["code"] == "key_gone"
    assert view["counts"]["succeeded"] < 50


def test_a_key_that_may_not_use_a_function_gets_it_per_line(stack: Stack) -> None:
    client = client_of(stack, key_named(stack, "narrow", functions=["fake/steps"]))

    batch = ended(client, submit(client, [line("may"), line("may-not", "fake/slow")]))

    assert [a["custom_id"] for a in results(client, batch.output_file_id)] == ["may"]
    assert [e["response"]["status_code"] for e in results(client, batch.error_file_id)] == [404]


def test_a_line_gives_way_to_a_request_and_is_sent_again(stack: Stack) -> None:
    client = client_of(stack)
    batch = submit(client, [line("slow", "fake/never")])
    eventually(lambda: _live(stack, batch.id), within_s=BATCH_S, what="the line at its instance")

    answer = client.chat.completions.create(
        model="fake/never", max_tokens=1, messages=[{"role": "user", "content": "now"}], timeout=BATCH_S
    )

    assert answer.choices
    eventually(lambda: _live(stack, batch.id), within_s=BATCH_S, what="the line to be sent again")
    assert "batch_waits" not in stack.http.get("/admin/requests").text + stack.http.get("/admin/decisions").text
    client.batches.cancel(batch.id)
    assert ended(client, batch).status == "cancelled"


def test_the_command_line_submits_a_file_and_writes_its_results(stack: Stack, tmp_path: Path) -> None:
    lines, answers = tmp_path / "lines.jsonl", tmp_path / "answers.jsonl"
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in [line("good"), line("bad", "no/such")]))
    admin = {"CORTEX_API_KEY": stack.local_key()}

    submitted = stack.cli("batch", "submit", str(lines), "--output", str(answers), "--json", env=admin)
    id = json.loads(submitted.stdout)["id"]
    shown = stack.cli("batch", "show", id, env=admin)
    listed = stack.cli("batch", "ls", "--json", env=admin)
    again = stack.cli("batch", "cancel", id, env=admin)

    assert [json.loads(text)["custom_id"] for text in answers.read_text().splitlines()] == ["good"]
    errors = answers.with_name("answers.jsonl.errors").read_text().splitlines()
    assert [json.loads(text)["custom_id"] for text in errors] == ["bad"]
    assert "1 succeeded, 1 failed" in shown.stdout
    assert json.loads(listed.stdout)[0]["id"] == id
    assert again.stdout == f"{id}: completed\n"


def test_the_command_line_names_the_line_that_is_no_request(stack: Stack, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps(line("good")) + "\nno\n")

    submitted = stack.cli("batch", "submit", str(lines), "--wait", env={"CORTEX_API_KEY": stack.local_key()})

    assert submitted.returncode == 1
    assert "line 2" in submitted.stderr


@pytest.mark.long
def test_each_line_has_one_result_through_the_deaths_of_all_processes(stack: Stack) -> None:
    _kill_all_amid(stack, 300)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_of_5000_lines_has_one_result_through_the_deaths_of_all_processes(stack: Stack) -> None:
    _kill_all_amid(stack, 5000)


@pytest.mark.long
def test_interactive_requests_are_hardly_slower_beside_a_batch(stack: Stack) -> None:
    client = client_of(stack)
    assert stack.chat("fake/shared").is_success
    alone = _latencies(stack)
    batch = submit(client, [line(f"line-{i}", "fake/shared") for i in range(5000)])
    eventually(lambda: done(client, batch) > 20, within_s=BATCH_S, what="the batch to run")
    before = done(client, batch)

    with_batch = _latencies(stack)

    lines, open_now = done(client, batch) - before, client.batches.retrieve(batch.id).status == "in_progress"
    client.batches.cancel(batch.id)
    ended(client, batch)
    p50, p99 = (with_batch[q] / alone[q] for q in (0.5, 0.99))
    print(f"p99 alone {alone[0.99]:.0f} ms, beside {with_batch[0.99]:.0f} ms: {p99:.3f}; p50 {p50:.3f}; {lines} lines")
    assert open_now and lines > 20
    assert p99 <= 1.2


def _latencies(stack: Stack) -> dict[float, float]:
    """Return percentiles in ms of requests by two clients, one after the other each."""

    def one(_: int) -> float:
        began = time.monotonic()
        assert stack.chat("fake/shared").is_success
        return 1000 * (time.monotonic() - began)

    with ThreadPoolExecutor(2) as clients:
        times = sorted(clients.map(one, range(REQUESTS)))
    return {q: times[int(q * (len(times) - 1))] for q in (0.5, 0.99)}


def _kill_all_amid(stack: Stack, lines: int) -> None:
    """Kill router, batch worker, agent and Redis, each some way into a batch, and compare the results."""
    client = client_of(stack)
    ids = [f"line-{i}" for i in range(lines)]
    began = time.monotonic()
    batch = submit(client, [line(id) for id in ids])
    for number, name in enumerate(("batch worker", "router", "agent", "redis-server"), 1):
        eventually(
            lambda least=number * lines // 8: (_while_processes_die(lambda: done(client, batch)) or 0) > least,  # type: ignore[misc]
            within_s=lines,
            what=f"progress before {name} dies",
        )
        eventually(lambda name=name: _processes(stack, name), what=name)[0].kill()  # type: ignore[misc]
    eventually(
        lambda: (_while_processes_die(lambda: client.batches.retrieve(batch.id).status) or "") in ENDED,
        within_s=lines + BATCH_S,
        what="the end",
    )
    now = client.batches.retrieve(batch.id)
    print(f"{lines} lines in {time.monotonic() - began:.0f} s, through four kills: {now.request_counts}")
    answers = [*results(client, now.output_file_id), *results(client, now.error_file_id)]
    assert sorted(a["custom_id"] for a in answers) == sorted(ids)
    assert now.request_counts is not None
    assert now.request_counts.completed == lines


def files_of(stack: Stack) -> Path:
    """Return the folder of files and batches."""
    return stack.folder / "state" / "cortex" / "files"


def _of(stack: Stack, id: str, status: str) -> dict[str, Any] | None:
    """Return a batch as operators see it, once it has a status."""
    batches = _seen(stack, "/admin/batches")["batches"]
    return next((dict(b) for b in batches if b["id"] == id and b["status"] == status), None)


def _live(stack: Stack, id: str) -> bool:
    """Whether a line of a batch is at an instance."""
    return any(r["id"].startswith(id) and r["instance"] for r in _seen(stack, "/admin/requests")["requests"])


def _seen(stack: Stack, path: str) -> Any:
    """Return what an operator sees."""
    return stack.http.get(path, headers={"authorization": f"Bearer {stack.local_key()}"}).json()


def _processes(stack: Stack, name: str) -> list[psutil.Process]:
    """Return the processes of a cortex that are a batch worker, a child of `cortex up` or Redis."""
    children = psutil.Process(stack.process.pid).children(recursive=True)
    word = "cortex.router.batches" if name == "batch worker" else name
    processes = []
    for process in children:
        with contextlib.suppress(psutil.Error):
            if process.name() == word or word in process.cmdline():
                processes.append(process)
    return processes


def _while_processes_die(look: Callable[[], T]) -> T | None:
    """Return what is seen; None while the router or its record is away."""
    try:
        return look()
    except openai.APIError:
        return None
