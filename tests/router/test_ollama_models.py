"""What Ollama's clients are told about models: fetches in progress, and descriptions."""

from typing import Any

import msgspec
import pytest

from cortex.router.api_types import DownloadView
from cortex.router.dialects.core.errors import Fault, Kind
from cortex.router.dialects.ollama import models
from cortex.router.dialects.ollama.models import Card
from cortex.router.routes import ollama

CARD = Card(name="mine", revision="r", created=1.0, abilities=("text", "vision", "tools", "reasoning"), context=4096)


class Readings:
    """Downloads as they are read, one list after another."""

    def __init__(self, *readings: list[DownloadView]) -> None:
        self._readings = list(readings)

    async def downloads(self) -> list[DownloadView]:
        return self._readings.pop(0)


def download(state: str, done: int = 0) -> DownloadView:
    return msgspec.convert(
        {
            "id": "job", "host": "a", "source": "org/name", "state": state, "active": state == "fetching",
            "functions": ["org/mine"], "done": done, "total": 100, "fraction": None, "rate": 0.0, "ends_at": None,
            "retry_at": None, "requested_at": None, "why": "",
        },
        DownloadView,
    )  # fmt: skip


async def pulled(monkeypatch: pytest.MonkeyPatch, *readings: list[DownloadView]) -> list[Any]:
    monkeypatch.setattr(ollama, "PULL_S", 0.0)
    unused: Any = None
    sources: Any = Readings(*readings)
    described = ollama.Models(unused, unused, sources, 1)
    return [line async for line in described.pull_progress(CARD, "org/mine")]


async def test_a_pull_follows_a_fetch_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = await pulled(monkeypatch, [download("fetching", 10)], [download("fetching", 60)], [download("done", 100)])

    assert [(line.completed, line.total) for line in lines] == [(0, 0), (10, 100), (60, 100), (0, 0)]
    assert lines[-1].status == "success"


@pytest.mark.parametrize("state", ["failed", "stopped"])
async def test_a_pull_of_a_fetch_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    lines = await pulled(monkeypatch, [download("fetching")], [download(state)])

    assert isinstance(lines[-1], Fault)
    assert lines[-1].kind is Kind.WORKER_ERROR


async def test_a_pull_of_what_is_not_fetched_succeeds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.status for line in await pulled(monkeypatch, [])] == ["pulling manifest", "success"]


def test_a_description_has_the_abilities_by_ollamas_names_and_the_context() -> None:
    shown = models.show_answer(CARD)

    assert shown.capabilities == ["completion", "vision", "tools", "thinking"]
    assert shown.model_info["cortex.context_length"] == 4096


def test_what_never_ends_ends_far_away_and_a_size_counts_on_devices_only() -> None:
    running = models.running(CARD, memory_mb=2, on_devices=False, ends_at=None)

    assert (running.expires_at, running.size, running.size_vram) == ("2100-01-01T00:00:00Z", 2 * 1024 * 1024, 0)


def test_a_name_without_its_tag() -> None:
    assert models.without_tag("org/name:latest") == "org/name"
    assert models.without_tag("org/name:Q4_K_M") == "org/name:Q4_K_M"
