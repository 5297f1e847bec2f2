"""Conversations of one host, with a worker and neighbours that do what they should not."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine
from cortex.platform.agent_messages import LeaveSeat, RestoreContext, TakeSeat
from cortex.platform.contexts import contexts as contexts_module
from cortex.platform.contexts.contexts import FREE_MB, Contexts
from cortex.platform.contexts.fit import MIB
from cortex.platform.faults import Faults
from cortex.platform.host.engines import Engines
from cortex.platform.keys import HostToken
from cortex.platform.record import HostRecord, SavedContext
from cortex.platform.scheduling.events import ContextNoted, Event, HostRead
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.settings import Agent, Settings
from cortex.platform.weights import disk
from tests.support.factories import a_function, a_host, an_instance
from tests.support.servers import serving

CONTENT = b"state " * 1000
OTHER_USER = 65534
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a file system or changes owners")
FUNCTION = a_function(engine=Engine.LLAMACPP, keep_context=True)


class Host:
    """The conversations of a host, and its one worker."""

    def __init__(self, folder: Path, name: str, owner: tuple[int, int] | None = None, keep_folder: Path | None = None):
        self.folder, self.name, self.url = folder, name, ""
        agent = Agent(name=name, cache_dir=str(folder / "cache"), keep_folder=str(keep_folder or ""))
        settings = Settings(agent=agent, token_file=str(folder / "token"))
        self.notes: list[ContextNoted] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.saved: tuple[SavedContext, ...] = ()
        self.off: dict[str, str] = {}
        engines = cast(Engines, SimpleNamespace(builds={"xllamacpp": "1"}))
        self.contexts = Contexts(
            settings, HostToken.of(settings), engines, disk.looks(), owner, self.record, lambda: None, self.tell,
            self.own, Faults(),
        )  # fmt: skip
        self.weights = folder / "model.gguf"
        self.weights.write_bytes(b"model")
        self.calls: list[str] = []
        self.content, self.rate, self.restores, self.fails = CONTENT, 100.0, 0, 0
        """What the worker saves, its prefill, how many tokens a restore lacks, and the status of its next errors."""

    @property
    def instance(self) -> Any:
        return an_instance("i1", host=self.name, url=self.url, server="xllamacpp", state=State.READY, revision="r1")

    def record(self) -> HostRecord:
        return replace(a_host(self.instance, contexts=self.saved), name=self.name, contexts_off=self.off)

    def tell(self, event: Event) -> None:
        match event:
            case ContextNoted():
                self.notes.append(event)
            case HostRead(contexts=contexts, contexts_off=off):
                self.saved = contexts if contexts is not None else self.saved
                self.off = dict(off) if off is not None else self.off

    def own(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)

    async def settle(self) -> None:
        """Wait for its background work."""
        while pending := [t for t in self.tasks if not t.done()]:
            await asyncio.wait(pending)

    async def worker(self, request: web.Request) -> web.StreamResponse:
        """Answer as llama.cpp's server does."""
        if request.path == "/props":
            return web.json_response({"build_info": "b1-abc"})
        if request.path == "/metrics":
            text = f"llamacpp:prompt_tokens_total {2000}\nllamacpp:prompt_seconds_total {2000 / self.rate}\n"
            return web.Response(text=text)
        action, body = request.query["action"], await request.json()
        self.calls.append(action)
        if action == "erase":
            return web.json_response({"n_erased": 1})
        if self.fails:
            return web.Response(status=self.fails)
        path = self.contexts._folder.slots_of("i1") / body["filename"]
        if action == "save":
            try:
                path.write_bytes(self.content)
            except OSError:
                return web.Response(status=500)
            return web.json_response({"n_saved": 2000, "n_written": len(self.content)})
        assert path.read_bytes() == self.content
        return web.json_response({"n_restored": 2000 - self.restores})

    async def begin(self) -> None:
        """Start its worker."""
        await self.contexts.start(())
        assert await self.contexts.open_for(self.instance, FUNCTION)
        await self.contexts.began(self.instance, str(self.weights), ("--model", "/m.gguf", "--parallel", "2"))
        await self.settle()

    async def save(self) -> None:
        """Serve a conversation, and save it."""
        take = TakeSeat(id="s1", router="r1", instance="i1", owner="me", marks=("mark",), slots=2)
        await self.contexts.seating.take(take)
        self.contexts.seating.leave(LeaveSeat(id="s1", instance="i1", mark="mark", tokens=1900))
        await self.contexts.save(self.instance, {"r1": 0})
        await self.settle()

    async def restore(self, context: SavedContext, address: str = "", host: str = "") -> tuple[int, str]:
        """Restore a conversation into slot 1."""
        request = RestoreContext(instance="i1", slot=1, context=context, host=host, address=address, key="k")
        answer = await self.contexts.restore(request)
        await self.settle()
        return answer.tokens, answer.why

    def whys(self, kind: DecisionKind = DecisionKind.CONTEXT_UNUSED) -> list[str]:
        return [n.why for n in self.notes if n.what is kind]

    def files(self) -> list[str]:
        """Return what is left of conversations on its disk."""
        return sorted(p.suffix for p in self.contexts._folder.path.rglob("*") if p.suffix in (".state", ".new"))


@contextlib.asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    async with serving(host.worker) as host.url:
        await host.begin()
        yield host


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Host]:
    """A host with a saved conversation."""
    (tmp_path / "one").mkdir()
    async with running(Host(tmp_path / "one", "one")) as host:
        await host.save()
        yield host


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Host]:
    (tmp_path / "two").mkdir()
    async with running(Host(tmp_path / "two", "two")) as host:
        yield host


async def test_a_conversation_is_saved_and_restored_once(one: Host) -> None:
    (context,) = one.saved

    first, again = await one.restore(context), await one.restore(context)

    assert (context.tokens, context.prompt_tokens, context.prefill_s) == (2000, 1900, 19.0)
    assert first == (2000, "")
    assert again == (0, "it is not on this host any more")
    assert (one.saved, one.files()) == ((), [])


async def test_a_restore_that_would_take_longer_than_the_prefill_is_not_begun(one: Host, two: Host) -> None:
    (context,) = one.saved
    quick = replace(context, prefill_s=CONTENT_S)
    one.contexts._saved = {context.id: quick}

    here, there = await one.restore(quick), await two.restore(quick, "http://127.0.0.1:1", "one")

    assert here == there == (0, "processing its prompt again takes less time")
    assert (one.calls, two.calls) == (["save"], [])


CONTENT_S = len(CONTENT) / (200 * MIB)
"""As long as an unmeasured disk needs."""


async def test_a_slow_neighbour_is_measured_and_then_not_asked(one: Host, two: Host) -> None:
    (context,) = one.saved
    two.contexts._rates.learn(len(CONTENT), 10.0, "one")

    assert await two.restore(replace(context, prefill_s=9.0), "http://127.0.0.1:1", "one") == (
        0, "processing its prompt again takes less time",
    )  # fmt: skip
    assert two.calls == []


async def test_a_failed_verification_switches_the_build_and_the_model_off_until_an_operator_says_so(one: Host) -> None:
    (context,) = one.saved
    await one.contexts.switch_off(context, "an answer found 0 of 1900 restored tokens in the engine's cache")

    await one.save()
    refused = await one.restore(context)
    await one.contexts.remove((), all=True)
    await one.save()

    assert one.whys(DecisionKind.CONTEXT_OFF) == ["an answer found 0 of 1900 restored tokens in the engine's cache"]
    assert refused[0] == 0
    assert "restore" not in one.calls
    assert len(one.saved) == 1
    assert one.off == {}


async def test_another_build_or_model_is_not_switched_off_with_it(one: Host, two: Host) -> None:
    (context,) = one.saved
    await two.contexts.switch_off(replace(context, build="other"), "nothing")

    await two.save()

    assert len(two.saved) == 1


class Neighbour:
    """Hands a conversation over, with a fault."""

    def __init__(self, content: bytes, cut_after: int | None = None, status: int = 200, hangs: bool = False) -> None:
        self.content, self.cut_after, self.status, self.hangs = content, cut_after, status, hangs

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        await response.write(self.content[: self.cut_after])
        if self.hangs:
            await asyncio.sleep(3600)
        if self.cut_after is not None:
            assert request.transport is not None
            request.transport.abort()  # as when its agent is killed
        return response


@pytest.mark.parametrize(
    ("neighbour", "why"),
    [
        (Neighbour(b"x" + CONTENT[1:]), "its file is not the one that was saved"),
        (Neighbour(CONTENT + b"x"), "one sent another number of bytes than it lists"),
        (Neighbour(CONTENT[:-1]), "one sent another number of bytes than it lists"),
        (Neighbour(b"", status=404), "one answered 404"),
        (Neighbour(CONTENT, cut_after=1000), "Response payload is not completed"),
        (Neighbour(CONTENT, cut_after=1000, hangs=True), "it was not restored within 0.2 s"),
    ],
    ids=["lies", "sends more", "sends less", "refuses", "vanishes", "hangs"],
)
async def test_what_a_neighbour_does_wrong_is_ignored_and_noted_once(
    one: Host, two: Host, neighbour: Neighbour, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts_module, "LEAST_RESTORE_S", 0.2)
    context = replace(one.saved[0], prefill_s=0.2 if neighbour.hangs else 2.0)

    async with serving(neighbour.answer) as address:
        answers = [await two.restore(context, address, "one") for _ in range(2)]

    assert [tokens for tokens, _ in answers] == [0, 0]
    assert answers[0][1].startswith(why)
    assert len(two.whys()) == 1
    assert two.calls == []
    assert two.files() == []


async def test_a_conversation_is_handed_over_by_a_neighbour(one: Host, two: Host) -> None:
    context = one.saved[0]

    async with serving(Neighbour(CONTENT).answer) as address:
        assert await two.restore(context, address, "one") == (2000, "")
    assert two.files() == []


async def test_a_neighbour_without_tls_is_not_called_where_the_fleet_uses_it(one: Host, two: Host) -> None:
    two.contexts._settings = msgspec.structs.replace(two.contexts._settings, ca_file="/etc/cortex/ca.pem")

    assert (await two.restore(one.saved[0], "http://127.0.0.1:1", "one"))[1] == (
        "one has no https address, and `ca_file` is set here"
    )


async def test_a_worker_that_restores_another_number_of_tokens_has_its_slot_emptied(one: Host) -> None:
    one.restores = 1

    assert (await one.restore(one.saved[0]))[1] == "the engine restored another number of tokens than it saved"
    assert one.calls == ["save", "restore", "erase"]
    assert (one.saved, one.files()) == ((), [])


async def test_a_worker_that_fails_to_restore_leaves_nothing(one: Host) -> None:
    one.fails = 500

    assert (await one.restore(one.saved[0]))[1].startswith("the engine answered 500")
    assert (one.saved, one.files()) == ((), [])


async def test_a_worker_that_fails_to_save_is_noted_once_and_leaves_nothing(two: Host) -> None:
    two.fails = 500

    await two.save()
    await two.save()

    assert len(two.whys()) == 1
    assert (two.saved, two.files()) == ((), [])


async def test_a_slot_with_another_prompt_keeps_no_other_conversation_from_being_saved(two: Host) -> None:
    for number, tokens in ((1, 3000), (2, 1900)):  # the worker saves 2000 of each
        take = TakeSeat(id=str(number), router="r1", instance="i1", owner="me", marks=(f"m{number}",), slots=2)
        await two.contexts.seating.take(take)
        two.contexts.seating.leave(LeaveSeat(id=str(number), instance="i1", mark=f"m{number}", tokens=tokens))

    await two.contexts.save(two.instance, {})
    await two.settle()

    assert [c.mark for c in two.saved] == ["m2"]
    assert two.whys() == ["a conversation could not be saved: its slot held another prompt than its router reported"]
    assert two.files() == [".state"]


@pytest.mark.parametrize("unseated", [None, {"r1": 1}])
async def test_what_may_not_be_in_its_slot_any_more_is_not_saved(two: Host, unseated: dict[str, int] | None) -> None:
    take = TakeSeat(id="s1", router="r1", instance="i1", owner="me", marks=("mark",), slots=2)
    await two.contexts.seating.take(take)
    two.contexts.seating.leave(LeaveSeat(id="s1", instance="i1", mark="mark", tokens=1900))

    await two.contexts.save(two.instance, unseated)

    assert two.calls == []


async def test_a_restore_during_which_a_request_used_unknown_slots_is_not_trusted(one: Host) -> None:
    with one.contexts.seating.unknown_slots("i1"):
        during = await one.restore(one.saved[0])

    assert during[0] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little more than what is left free."""
    path = tmp_path / "small"
    path.mkdir()
    size = f"size={FREE_MB + 2}m,mode=0700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@NEEDS_ROOT
async def test_on_a_full_disk_nothing_is_saved_and_nothing_is_left(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "one").mkdir()
    async with running(Host(tmp_path / "one", "one", keep_folder=small_disk)) as host:
        host.content = bytes((FREE_MB + 3) * MIB)
        await host.save()  # its worker meets the end of the disk
        left = host.files()
        filler = small_disk / "filler"
        filler.write_bytes(bytes(4 * MIB))
        await host.save()  # the agent sees that there is no room
        filler.unlink()
        host.content = CONTENT
        await host.save()

    assert left == []
    assert host.whys() == [
        "a conversation could not be saved: the engine answered 500 to /slots/0?action=save",
        "a conversation could not be saved: the disk has no room for it",
    ]
    assert len(host.saved) == 1


@NEEDS_ROOT
async def test_a_disk_that_fills_up_before_the_manifest_leaves_no_conversation(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    async with running(Host(tmp_path / "one", "one", keep_folder=small_disk)) as host:
        finish = host.contexts._folder.finish

        def full(context: SavedContext) -> SavedContext:
            with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(MIB)):
                    pass
            return finish(context)

        monkeypatch.setattr(host.contexts._folder, "finish", full)
        await host.save()

        assert host.whys() == ["its conversations could not be saved: [Errno 28] No space left on device"]
        assert (host.saved, host.files()) == ((), [])


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder through which other users may pass, as the deployment's are; those of tests are private."""
    with tempfile.TemporaryDirectory(prefix="cortex-kept-", dir="/tmp") as path:
        Path(path).chmod(0o711)
        yield Path(path)


def as_nobody(*command: str) -> int:
    """Run a command as the user `nobody`; return its exit status."""
    argv = ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups", *command]
    return subprocess.run(argv, check=False, capture_output=True).returncode


def owner_and_mode(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_mode & 0o777


@NEEDS_ROOT
async def test_with_a_worker_user_files_are_the_agents_but_for_the_one_that_is_read(
    tmp_path: Path, passable: Path
) -> None:
    async with running(Host(tmp_path, "one", owner=(OTHER_USER, OTHER_USER), keep_folder=passable / "kept")) as host:
        await host.save()
        folder = host.contexts._folder
        saved, slots = folder.state_path(host.saved[0].id), folder.slots_of("i1")
        before = owner_and_mode(saved), owner_and_mode(slots)
        writes, peeks = as_nobody("cp", "/etc/hostname", str(slots / "x")), as_nobody("ls", str(saved.parent))
        folder.hand_out(host.saved[0], "i1", (OTHER_USER, OTHER_USER))

    assert before == ((os.geteuid(), 0o600), (OTHER_USER, 0o700))
    assert (writes, peeks != 0) == (0, True)
    assert owner_and_mode(slots / saved.name) == (OTHER_USER, 0o600)
    assert as_nobody("cat", str(slots / saved.name)) == 0


async def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    host = Host(tmp_path, "one", keep_folder=open_to_all)

    assert await host.contexts.open_for(host.instance, FUNCTION) == ""
    assert host.whys() == [
        f"its conversations cannot be saved: another user may write to {open_to_all}: give it to this agent's user "
        "alone"
    ]
