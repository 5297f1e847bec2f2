"""BlockingCalls at weights: where they go, and that a mount that hangs holds up only what is on it."""

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
    folder, back = tmp_path / "hung", threading.Event()
    stat = os.stat

    def slow(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(folder)):
            back.wait()
            raise FileNotFoundError(str(path))
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", slow)
    yield folder
    back.set()


@pytest.fixture
def well(tmp_path: Path) -> Function:
    """A function whose weights are there."""
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
def test_a_path_belongs_to_the_mount_its_words_say(path: str, mount: str) -> None:
    assert disk.mount_of(path, MOUNTS) == mount


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("/data/m.gguf", "/data/m.gguf"),
        ("org/m:Q4_K_M", "/cache/hub/models--org--m"),
        ("demo:tiny", "/cache/demo/tiny.gguf"),
    ],
)
def test_weights_are_looked_for_at_one_place(source: str, place: str) -> None:
    assert disk.place_of(function("f", source), Path("/cache")) == place


async def test_weights_that_are_there_are_found_with_their_layers(well: Function, tmp_path: Path) -> None:
    found = await disk.weights(disk.looks(), well, tmp_path)

    assert found is not None
    assert (found.path, found.layers > 0) == (well.source, True)


async def test_what_does_not_answer_is_left_out_and_the_rest_is_found(
    hung: Path, well: Function, tmp_path: Path
) -> None:
    looks = BlockingCalls(WITHIN_S)
    functions = [*(function(f"h{n}", str(hung / f"{n}.gguf")) for n in range(3)), well]

    assert set(await disk.sizes(looks, functions, tmp_path)) == {"well"}
    assert [s.functions for s in await disk.inventory(looks, tmp_path, functions, ())] == [("well",)]
    assert looks.under_way() == 3


async def test_weights_outside_of_the_roots_are_refused_and_hung_roots_are_not_needed_for_the_others(
    hung: Path, well: Function, tmp_path: Path
) -> None:
    looks, elsewhere = BlockingCalls(WITHIN_S), tmp_path / "cache"

    found = await disk.weights(looks, well, elsewhere, (str(hung), str(tmp_path)))
    with pytest.raises(WeightsUnavailable, match="outside of"):
        await disk.weights(looks, well, elsewhere, (str(tmp_path / "other"),))

    assert found is not None


async def test_a_look_that_does_not_ask_for_the_roots_answers_none_that_does(well: Function, tmp_path: Path) -> None:
    looks = BlockingCalls(WITHIN_S)

    free, bound = await asyncio.gather(
        disk.weights(looks, well, tmp_path / "cache"),
        disk.weights(looks, well, tmp_path / "cache", (str(tmp_path / "other"),)),
        return_exceptions=True,
    )

    assert not isinstance(free, BaseException)
    assert isinstance(bound, WeightsUnavailable)


def test_the_root_that_names_a_path_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    resolve = Path.resolve

    def noted(path: Path, strict: bool = False) -> Path:
        seen.append(path.name)
        return resolve(path, strict)

    monkeypatch.setattr(Path, "resolve", noted)

    load_policy.keep_inside(tmp_path / "m.gguf", ("/mnt/away", str(tmp_path)))

    assert "away" not in seen


async def test_a_function_on_a_hung_mount_is_refused_while_another_is_answered(
    hung: Path, well: Function, tmp_path: Path
) -> None:
    looks = BlockingCalls(WITHIN_S)
    stuck = function("stuck", str(hung / "m.gguf"))

    for _ in range(2):
        with pytest.raises(NoAnswer, match=str(hung / "m.gguf")):
            await disk.weights(looks, stuck, tmp_path)

    assert await disk.weights(looks, well, tmp_path) is not None
    assert looks.under_way() == 1
