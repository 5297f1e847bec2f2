"""Loading an adapter into a running worker: what the engine is told, and what its answers come to."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from cortex.functions.spec import Adapter, Engine, Function
from cortex.functions.variants import adapter_name, adapter_number
from cortex.platform.scheduling.effects import LoadAdapter, UnloadAdapter
from cortex.platform.scheduling.events import AdapterFailed, AdapterLoaded, AdapterProgress, Event
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Agent
from cortex.platform.weights import disk
from cortex.platform.weights.fetches import Fetches, FetchProblem
from cortex.platform.workers import adapter_loads
from cortex.platform.workers.adapter_loads import AdapterLoads
from cortex.platform.workers.control_keys import ControlKeys
from tests.support.factories import an_instance
from tests.support.servers import serving
from tests.support.small_vllm import write_adapter

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Worker:
    """An engine that answers each call with the next of some answers, and what the agent told of it."""

    def __init__(self, folder: Path, *answers: tuple[int, str], fetched: Path | None = None) -> None:
        self.folder, self.answers, self.fetched = folder, list(answers), fetched
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self.events: list[Event] = []
        self.notes: list[str] = []
        self.keys = ControlKeys(folder / "state")

    async def handle(self, request: web.Request) -> web.Response:
        self.calls.append((request.path, await request.json(), request.headers["authorization"]))
        status, text = self.answers.pop(0)
        return web.Response(status=status, text=text)

    async def note(self, function: str, instance: str, text: str) -> None:
        self.notes.append(text)

    async def fetch_adapter(self, instance: object, adapter: Function, report: Callable[[str], None]) -> LocalWeights:
        report("1 MiB of 2 MiB")
        if self.fetched is None:
            raise FetchProblem("it is private")
        return LocalWeights(str(self.fetched), 1)

    def loads(self, *roots: str) -> AdapterLoads:
        settings = Agent(cache_dir=str(self.folder / "cache"), weight_roots=roots)
        return AdapterLoads(settings, disk.looks(), cast(Fetches, self), self.keys, self.note, self.events.append)

    async def load(self, source: str, *roots: str) -> None:
        adapter = Adapter("legal", source)
        base = Function(id="base", engine=Engine.VLLM, source="/m", adapters=(adapter,))
        async with serving(self.handle) as url:
            effect = LoadAdapter(an_instance("i", url=url), base, adapter, LocalWeights("/m", 1, adapter_rank=16))
            await self.loads(*roots).load(effect)


async def test_the_engine_is_told_the_name_and_the_path_with_the_control_key(tmp_path: Path) -> None:
    worker, path = Worker(tmp_path, (200, "Success")), str(write_adapter(tmp_path / "legal"))

    await worker.load(path)

    number = adapter_number(path)
    body = {"lora_name": adapter_name("legal", number), "lora_path": path}
    assert worker.calls == [("/v1/load_lora_adapter", body, f"Bearer {worker.keys.key('i')}")]
    assert worker.events == [AdapterLoaded("i", "legal", number, path)]


async def test_an_adapter_that_an_earlier_agent_has_loaded_is_loaded(tmp_path: Path) -> None:
    text = json.dumps({"error": {"message": "The lora adapter 'x' has already been loaded. If you want"}})
    worker = Worker(tmp_path, (400, text))

    await worker.load(str(write_adapter(tmp_path / "legal")))

    assert isinstance(worker.events[0], AdapterLoaded)


async def test_the_engines_own_words_about_a_failure_go_to_its_log_only(tmp_path: Path) -> None:
    worker = Worker(tmp_path, (500, "the prompt was: secret"))

    path = str(write_adapter(tmp_path / "legal"))
    await worker.load(path)

    (failed,) = worker.events
    reason = "the engine cannot load the adapter legal: its log has the reason"
    assert failed == AdapterFailed("i", "legal", adapter_number(path), reason)
    assert "the prompt was: secret" in worker.notes[0]


@pytest.mark.parametrize(
    ("rank", "base", "roots", "why"),
    [
        (17, "", (), "its rank is 17, and the instance was started for at most 16"),
        (8, "", ("/srv/models",), "outside"),
    ],
)
async def test_an_adapter_that_may_not_or_cannot_be_loaded_is_not_given_to_the_engine(
    tmp_path: Path, rank: int, base: str, roots: tuple[str, ...], why: str
) -> None:
    worker = Worker(tmp_path)

    await worker.load(str(write_adapter(tmp_path / "legal", rank=rank, base=base)), *roots)

    (failed,) = worker.events
    assert isinstance(failed, AdapterFailed)
    assert why in failed.reason


@pytest.mark.parametrize("exists", [True, False])
async def test_an_adapter_that_is_not_here_is_fetched_first(tmp_path: Path, exists: bool) -> None:
    fetched = write_adapter(tmp_path / "fetched") if exists else None
    worker = Worker(tmp_path, (200, ""), fetched=fetched)

    await worker.load("org/legal")

    progress, result = worker.events
    assert progress == AdapterProgress("i", "legal", "1 MiB of 2 MiB")
    if exists:
        assert result == AdapterLoaded("i", "legal", adapter_number("org/legal"), str(fetched))
    else:
        assert result == AdapterFailed("i", "legal", adapter_number("org/legal"), "it is private")


async def test_a_worker_that_does_not_answer_is_a_failure(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    path = str(write_adapter(tmp_path / "legal"))
    adapter = Adapter("legal", path)
    base = Function(id="base", engine=Engine.VLLM, source="/m", adapters=(adapter,))

    await worker.loads().load(
        LoadAdapter(an_instance("i", url="http://127.0.0.1:1"), base, adapter, LocalWeights("/m", 1, adapter_rank=16))
    )

    (failed,) = worker.events
    assert isinstance(failed, AdapterFailed)
    assert failed.reason.startswith("/v1/load_lora_adapter: ")


async def test_an_adapter_is_unloaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_loads, "UNLOAD_AFTER_S", 0.0)
    worker = Worker(tmp_path, (200, ""))

    async with serving(worker.handle) as url:
        await worker.loads().unload(UnloadAdapter(an_instance("i", url=url), "legal@1"))

    assert [(path, body) for path, body, _ in worker.calls] == [("/v1/unload_lora_adapter", {"lora_name": "legal@1"})]
