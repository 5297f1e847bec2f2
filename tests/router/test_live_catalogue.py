"""A router follows its catalogue file; an incomplete, truncated or missing file never empties the fleet."""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cortex.functions.spec import Function, revision
from cortex.platform import text_files
from cortex.platform.api_keys import Principal
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Override
from cortex.router import live_catalogue
from cortex.router.activation.agents import Agents
from cortex.router.background import Sweeper
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import MOST_CHANGES, LiveCatalogue
from tests.support.catalogues import fake
from tests.support.factories import a_host

TWO = fake("one") + fake("two")


def a_catalogue(folder: Path, text: str = TWO) -> tuple[LiveCatalogue, Path]:
    path = folder / "models.toml"
    path.write_text(text)
    return LiveCatalogue(path), path


def rewrite(path: Path, text: str, age_s: float) -> None:
    """Write the file with a modification time of its own, however coarse the file system's clock is."""
    path.write_text(text)
    at = path.stat().st_mtime_ns - round(age_s * 1e9)
    os.utime(path, ns=(at, at))


async def check(live: LiveCatalogue, times: int = 2) -> None:
    for _ in range(times):
        await live.check()


async def test_a_change_is_applied_at_the_second_check(tmp_path: Path) -> None:
    live, path = a_catalogue(tmp_path)
    path.write_text(fake("one"))

    await live.check()
    before = list(live.catalogue.functions)
    await live.check()

    assert before == ["one", "two"]
    assert list(live.catalogue.functions) == ["one"]


async def test_a_file_that_still_changes_is_not_read(tmp_path: Path) -> None:
    live, path = a_catalogue(tmp_path)

    rewrite(path, "", 3)
    await live.check()
    rewrite(path, fake("one"), 2)
    await live.check()
    rewrite(path, fake("one") + fake("two") + fake("three"), 1)
    await check(live)

    assert list(live.catalogue.functions) == ["one", "two", "three"]
    assert live.problem == ""


async def test_a_file_that_changes_during_a_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, path = a_catalogue(tmp_path)
    rewrite(path, fake("one"), 9)
    await live.check()
    reads: list[str] = []

    def read_slowly(read: Path) -> str:
        text = read.read_text()
        reads.append(text)
        if len(reads) == 1:
            rewrite(path, fake("late"), 5)
        return text

    monkeypatch.setattr(text_files, "read_regular", read_slowly)
    await live.check()
    between = list(live.catalogue.functions)
    await live.check()

    assert between == ["one", "two"]
    assert list(live.catalogue.functions) == ["late"]
    assert len(reads) == 2


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing here yet\n", "[defaults]\nidle_after_s = 60\n"])
async def test_a_file_without_functions_leaves_the_catalogue_in_effect(tmp_path: Path, text: str) -> None:
    live, path = a_catalogue(tmp_path)
    path.write_text(text)

    await check(live)

    assert list(live.catalogue.functions) == ["one", "two"]
    assert "stays in effect" in live.problem
    assert "`models = []`" in live.problem


async def test_a_missing_file_leaves_the_catalogue_in_effect_until_it_returns(tmp_path: Path) -> None:
    live, path = a_catalogue(tmp_path)
    path.unlink()
    await check(live)
    during = (list(live.catalogue.functions), live.problem)
    path.write_text(fake("one"))

    await check(live)

    assert during[0] == ["one", "two"]
    assert "No such file" in during[1]
    assert (list(live.catalogue.functions), live.problem) == (["one"], "")


async def test_a_file_with_an_empty_models_list_removes_every_function(tmp_path: Path) -> None:
    live, path = a_catalogue(tmp_path)
    path.write_text("models = []\n")

    await check(live)

    assert (live.catalogue.functions, live.problem, live.is_deliberate) == ({}, "", True)


@pytest.mark.parametrize(("text", "deliberate"), [("", False), ("models = []", True), (TWO, True)])
def test_a_catalogue_is_deliberate_unless_its_file_is_empty(tmp_path: Path, text: str, deliberate: bool) -> None:
    live, _ = a_catalogue(tmp_path, text)

    assert live.is_deliberate is deliberate


async def test_a_file_that_never_stops_changing_is_reported(tmp_path: Path) -> None:
    live, path = a_catalogue(tmp_path)

    for nth in range(MOST_CHANGES):
        rewrite(path, fake("one"), nth + 1)
        await live.check()

    assert list(live.catalogue.functions) == ["one", "two"]
    assert "does not stop changing" in live.problem


async def test_a_change_or_a_finished_task_ends_the_wait(tmp_path: Path) -> None:
    live, path = a_catalogue(tmp_path)
    never = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(live.change(60, never))
    await asyncio.sleep(0)
    path.write_text(fake("one"))

    await check(live)
    await asyncio.wait_for(waiting, 5)
    never.cancel()
    await asyncio.wait_for(live.change(60, never), 5)

    assert list(live.catalogue.functions) == ["one"]


@pytest.mark.parametrize(("text", "expected"), [("", []), ("models = []\n", ["http://host-a:13131"])])
async def test_an_empty_catalogue_is_sent_to_agents_only_if_deliberate(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    """It stops every instance, so a router that starts with a truncated file must not send it."""
    live, _ = a_catalogue(tmp_path, text)
    addresses: list[str] = []

    async def send_catalogue(host: HostRecord, catalogue: object, digest: str) -> None:
        addresses.append(host.address)

    host = a_host()
    view = SimpleNamespace(fleet=Fleet(hosts={host.name: host}))
    agents, nothing = SimpleNamespace(send_catalogue=send_catalogue), cast(Any, None)
    sweeper = Sweeper(nothing, cast(FleetView, view), live, cast(Agents, agents), nothing, nothing)

    await sweeper.send_catalogue()

    assert addresses == expected


@pytest.mark.parametrize(("functions", "may_use_it"), [((), True), (("b*", "small"), True), (("big",), False)])
def test_a_substitute_answers_only_keys_that_may_use_it(
    tmp_path: Path, functions: tuple[str, ...], may_use_it: bool
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(fake("big") + fake("small") + '[aliases]\nchat = { use = "big", on_cold = { use = "small" } }\n')
    caller = Principal(id="k", name="team", scope="inference", rights=frozenset(), functions=functions)

    assert (LiveCatalogue(file).substitute("chat", caller) is not None) is may_use_it


async def test_what_follows_from_a_changed_file_is_worked_out_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[str, bool]] = []

    def noted(function: Function) -> str:
        computed.append((function.id, threading.current_thread() is threading.main_thread()))
        return revision(function)

    monkeypatch.setattr(live_catalogue, "revision", noted)
    live, path = a_catalogue(tmp_path)
    computed.clear()

    rewrite(path, TWO + fake("three"), 1)
    await check(live)
    of_the_file = list(computed)
    computed.clear()
    live.override({"two": Override(min=1)})

    assert of_the_file == [("one", False), ("two", False), ("three", False)]
    assert computed == [("two", True)]
    assert {id: t.revision for id, t in live._targets.items()} == {
        id: revision(f) for id, f in live.catalogue.functions.items()
    }


async def test_an_override_of_the_time_in_which_a_file_is_read_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, path = a_catalogue(tmp_path)
    parse = live._parse

    def meanwhile(text: str) -> Any:
        parsed = parse(text)
        live.override({"two": Override(min=1)})
        return parsed

    monkeypatch.setattr(live, "_parse", meanwhile)
    rewrite(path, TWO + fake("three"), 1)
    await check(live)

    assert [f.min for f in live.catalogue.functions.values()] == [0, 1, 0]
