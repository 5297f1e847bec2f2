"""The catalogue's file as a router follows it: what is half written, cut short or gone never empties the fleet."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cortex.platform.record import Fleet, HostRecord
from cortex.router.live_catalogue import MOST_LOOKS, LiveCatalogue
from cortex.router.runtime import Runtime
from tests.support.catalogues import fake
from tests.support.factories import a_host

TWO = fake("one") + fake("two")


def a_directory(folder: Path, text: str = TWO) -> tuple[LiveCatalogue, Path]:
    path = folder / "models.toml"
    path.write_text(text)
    return LiveCatalogue(path), path


def rewrite(path: Path, text: str, age_s: float) -> None:
    """Write the file with a modification time of its own, however coarse the file system's clock is."""
    path.write_text(text)
    at = path.stat().st_mtime_ns - round(age_s * 1e9)
    os.utime(path, ns=(at, at))


async def look(directory: LiveCatalogue, times: int = 2) -> None:
    for _ in range(times):
        await directory.look()


async def test_a_change_is_read_once_it_has_stood_for_one_look(tmp_path: Path) -> None:
    directory, path = a_directory(tmp_path)
    path.write_text(fake("one"))

    await directory.look()
    before = list(directory.catalogue.functions)
    await directory.look()

    assert before == ["one", "two"]
    assert list(directory.catalogue.functions) == ["one"]


async def test_a_file_that_is_still_being_written_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    directory, path = a_directory(tmp_path)

    rewrite(path, "", 3)
    await directory.look()
    rewrite(path, fake("one"), 2)
    await directory.look()
    rewrite(path, fake("one") + fake("two") + fake("three"), 1)
    await look(directory)

    assert list(directory.catalogue.functions) == ["one", "two", "three"]
    assert directory.problem == ""


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, path = a_directory(tmp_path)
    rewrite(path, fake("one"), 9)
    await directory.look()
    reads: list[str] = []

    def read_slowly(read: Path) -> str:
        text = read.read_text()
        reads.append(text)
        if len(reads) == 1:
            rewrite(path, fake("late"), 5)
        return text

    monkeypatch.setattr("cortex.router.live_catalogue._text", read_slowly)
    await directory.look()
    between = list(directory.catalogue.functions)
    await directory.look()

    assert between == ["one", "two"]
    assert list(directory.catalogue.functions) == ["late"]
    assert len(reads) == 2


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing here yet\n", "[defaults]\nidle_after_s = 60\n"])
async def test_a_file_that_has_lost_every_function_leaves_the_catalogue_in_force(tmp_path: Path, text: str) -> None:
    directory, path = a_directory(tmp_path)
    path.write_text(text)

    await look(directory)

    assert list(directory.catalogue.functions) == ["one", "two"]
    assert "still in force" in directory.problem
    assert "`models = []`" in directory.problem


async def test_a_file_that_disappears_leaves_the_catalogue_in_force_until_it_is_back(tmp_path: Path) -> None:
    directory, path = a_directory(tmp_path)
    path.unlink()
    await look(directory)
    gone = (list(directory.catalogue.functions), directory.problem)
    path.write_text(fake("one"))

    await look(directory)

    assert gone[0] == ["one", "two"]
    assert "No such file" in gone[1]
    assert (list(directory.catalogue.functions), directory.problem) == (["one"], "")


async def test_a_file_that_says_there_are_no_models_removes_every_function(tmp_path: Path) -> None:
    directory, path = a_directory(tmp_path)
    path.write_text("models = []\n")

    await look(directory)

    assert (directory.catalogue.functions, directory.problem, directory.is_deliberate) == ({}, "", True)


@pytest.mark.parametrize(("text", "deliberate"), [("", False), ("models = []", True), (TWO, True)])
def test_a_router_that_starts_with_an_empty_file_knows_that_it_may_be_an_accident(
    tmp_path: Path, text: str, deliberate: bool
) -> None:
    directory, _ = a_directory(tmp_path, text)

    assert directory.is_deliberate is deliberate


async def test_a_file_that_never_stops_changing_is_reported(tmp_path: Path) -> None:
    directory, path = a_directory(tmp_path)

    for nth in range(MOST_LOOKS):
        rewrite(path, fake("one"), nth + 1)
        await directory.look()

    assert list(directory.catalogue.functions) == ["one", "two"]
    assert "does not stop changing" in directory.problem


async def test_who_waits_for_a_change_is_woken_by_the_catalogue_or_by_its_task(tmp_path: Path) -> None:
    directory, path = a_directory(tmp_path)
    never = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(directory.change(60, never))
    await asyncio.sleep(0)
    path.write_text(fake("one"))

    await look(directory)
    await asyncio.wait_for(waiting, 5)
    never.cancel()
    await asyncio.wait_for(directory.change(60, never), 5)

    assert list(directory.catalogue.functions) == ["one"]


@pytest.mark.parametrize(("text", "expected"), [("", []), ("models = []\n", ["http://host-a:13131"])])
async def test_agents_are_told_an_empty_catalogue_only_when_it_is_meant(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    """Every instance is stopped for it: a router that starts with a file that was cut off must not do that."""
    directory, _ = a_directory(tmp_path, text)
    addresses: list[str] = []

    async def heed(host: HostRecord, catalogue: object, digest: str) -> None:
        addresses.append(host.address)

    host = a_host()
    view = SimpleNamespace(fleet=Fleet(hosts={host.name: host}))
    runtime = SimpleNamespace(directory=directory, view=view, agents=SimpleNamespace(heed=heed))

    await Runtime._tell_catalogue(cast(Runtime, runtime))

    assert addresses == expected
