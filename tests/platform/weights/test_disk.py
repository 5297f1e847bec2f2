"""Access to weights through BlockingCalls: a hung mount delays only the paths on it."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.functions.spec import Engine, Function
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.weights import disk, load_policy
from cortex.platform.weights.demo_model import write_bigram
from cortex.platform.weights.hub import WeightsUnavailable

WITHIN_S = 0.3
MOUNTS = ("/", "/mnt/nfs", "/mnt/nfs/inner", "/home")


def function(name: str, source: str) -> Function:
    return Function(id=name, engine=Engine.LLAMACPP, source=source)


@pytest.fixture
def hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which every `stat` blocks, as on a mount whose server is gone."""
    folder, released = tmp_path / "hung", threading.Event()
    stat = os.stat

    def slow(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(folder)):
            released.wait()
            raise FileNotFoundError(str(path))
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", slow)
    yield folder
    released.set()


@pytest.fixture
def present(tmp_path: Path) -> Function:
    """A function whose weights exist."""
    write_bigram(tmp_path / "well.gguf", "one two three", name="well")
    return function("well", str(tmp_path / "well.gguf"))


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/mnt/nfs/models/a.gguf", "/mnt/nfs"),
        ("/mnt/nfs", "/mnt/nfs"),
        ("/mnt/nfs/inner/../a", "/mnt/nfs"),
        ("/mnt/nfs/inner/a", "/mnt/nfs/inner"),
        ("/mnt/nfs2/a", "/mnt"),
        ("/data/models/a", "/data"),
        ("/", "/"),
    ],
)
def test_a_path_belongs_to_its_longest_mount_prefix(path: str, mount: str) -> None:
    assert disk.mount_of(path, MOUNTS) == mount


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("/data/m.gguf", "/data/m.gguf"),
        ("org/m:Q4_K_M", "/cache/hub/models--org--m"),
        ("demo:tiny", "/cache/demo/tiny.gguf"),
    ],
)
def test_each_source_has_one_path(source: str, place: str) -> None:
    assert disk.place_of(function("f", source), Path("/cache")) == place


async def test_present_weights_are_found_with_their_layers(present: Function, tmp_path: Path) -> None:
    local = await disk.weights(disk.looks(), present, tmp_path)

    assert local is not None
    assert (local.path, local.layers > 0) == (present.source, True)


async def test_hung_weights_are_omitted_and_the_rest_is_found(hung: Path, present: Function, tmp_path: Path) -> None:
    looks = BlockingCalls(WITHIN_S)
    functions = [*(function(f"h{n}", str(hung / f"{n}.gguf")) for n in range(3)), present]

    assert set(await disk.sizes(looks, functions, tmp_path)) == {"well"}
    assert [s.functions for s in await disk.inventory(looks, tmp_path, functions, ())] == [("well",)]
    assert looks.under_way() == 3


async def test_weights_outside_the_roots_are_refused_and_a_hung_root_does_not_block_others(
    hung: Path, present: Function, tmp_path: Path
) -> None:
    looks, elsewhere = BlockingCalls(WITHIN_S), tmp_path / "cache"

    local = await disk.weights(looks, present, elsewhere, (str(hung), str(tmp_path)))
    with pytest.raises(WeightsUnavailable, match="outside "):
        await disk.weights(looks, present, elsewhere, (str(tmp_path / "other"),))

    assert local is not None


async def test_a_result_without_roots_is_not_reused_with_roots(present: Function, tmp_path: Path) -> None:
    looks = BlockingCalls(WITHIN_S)

    free, bound = await asyncio.gather(
        disk.weights(looks, present, tmp_path / "cache"),
        disk.weights(looks, present, tmp_path / "cache", (str(tmp_path / "other"),)),
        return_exceptions=True,
    )

    assert not isinstance(free, BaseException)
    assert isinstance(bound, WeightsUnavailable)


def test_the_root_that_is_a_prefix_of_the_path_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[str] = []
    resolve = Path.resolve

    def record(path: Path, strict: bool = False) -> Path:
        readings.append(path.name)
        return resolve(path, strict)

    monkeypatch.setattr(Path, "resolve", record)

    load_policy.require_inside(tmp_path / "m.gguf", ("/mnt/away", str(tmp_path)))

    assert "away" not in readings


async def test_a_function_on_a_hung_mount_is_refused_while_another_is_answered(
    hung: Path, present: Function, tmp_path: Path
) -> None:
    looks = BlockingCalls(WITHIN_S)
    stuck = function("stuck", str(hung / "m.gguf"))

    for _ in range(2):
        with pytest.raises(NoAnswer, match=str(hung / "m.gguf")):
            await disk.weights(looks, stuck, tmp_path)

    assert await disk.weights(looks, present, tmp_path) is not None
    assert looks.under_way() == 1
