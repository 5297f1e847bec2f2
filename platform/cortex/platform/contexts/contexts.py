"""The saved conversations of one host: what is saved, restored, handed over and removed.

The router decides whose conversation is restored into which slot; the agent decides whether it fits. What does not fit
exactly, or cannot be restored in less time than its prompt takes, is not used: the request is served as without. A
conversation is used once: it leaves the folder before the worker reads it.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import structlog
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.names import slug
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import ContextAnswer, RestoreContext
from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.contexts.fit import (
    MIB,
    Rates,
    WorkerFacts,
    is_slow,
    settings_digest,
    to_remove,
    why_unused,
    worth_saving,
)
from cortex.platform.contexts.folder import Damaged, Folder, WorkerSettings, key_of
from cortex.platform.contexts.seating import Seating
from cortex.platform.contexts.seats import SlotContext
from cortex.platform.contexts.slot_calls import SlotCalls, SlotFailed
from cortex.platform.faults import Faults
from cortex.platform.fleet import Fleet
from cortex.platform.host.engines import Engines
from cortex.platform.keys import HostToken
from cortex.platform.record import HostRecord, Instance, SavedContext
from cortex.platform.scheduling.events import ContextNoted, Event, HostRead
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.serving.trust import trust
from cortex.platform.settings import Settings

log = structlog.get_logger()
T = TypeVar("T")

SAVE_S, LEAST_SAVE_S = 10.0, 0.1
"""How long saving may delay the end of a worker, and the least time for which a slot is still begun."""
LEAST_RESTORE_S, MOST_RESTORE_S = 2.0, 60.0
"""Bounds of the time limit of a restore, which is the time that the prompt would take."""
FILES_S = 600.0
"""Time limit of hashing and removing files."""
DIGEST_S = 7200.0
"""Time limit of hashing a model."""
FREE_MB = 256
"""Disk space that is left free."""
MOST = 64
"""Saved conversations of one host: each is in the host's record."""
TRIM_S = 30.0
Own = Callable[[str, Coroutine[Any, Any, None]], object]


class Contexts:
    """The saved conversations of one agent."""

    def __init__(
        self,
        settings: Settings,
        token: HostToken,
        engines: Engines,
        looks: BlockingCalls,
        owner: tuple[int, int] | None,
        record: Callable[[], HostRecord],
        reports: Callable[[], Fleet | None],
        tell: Callable[[Event], None],
        own: Own,
        faults: Faults,
    ) -> None:
        """`owner`: user and group of the workers, if not the agent's. `reports` returns what routers report. `own` runs
        background work."""
        self._settings, self._engines, self._looks, self._owner = settings, engines, looks, owner
        self._record, self._tell, self._own, self._faults = record, tell, own, faults
        agent = settings.agent
        parent = Path(agent.keep_folder) if agent.keep_folder else Path(agent.cache_dir) / "contexts"
        path = parent.expanduser() / slug(settings.host_name)
        self._folder, self._calls, self._rates = Folder(path), SlotCalls(token), Rates()
        self.seating = Seating(reports)
        self._saved: dict[str, SavedContext] = {}
        self._off: dict[str, str] = {}
        self._functions_off: dict[str, str] = {}
        self._noted: dict[str, str] = {}
        """By function, the last problem that was noted: it is noted once."""
        self._size_per_token: dict[str, float] = {}
        self._busy: set[str] = set()

    async def start(self, instances: Collection[str]) -> None:
        """Read the folder, and remove what earlier agents left unfinished."""
        with self._faults.guard("contexts"):
            removed = await self._files("sweep", partial(self._folder.sweep, tuple(instances)))
            if removed:
                log.info("contexts_swept", removed=removed)
            self._off = await self._files("off", self._folder.off)
            await self._read()

    async def run(self) -> None:
        """Remove what is too old, again and again."""
        while True:
            await asyncio.sleep(TRIM_S)
            if self._saved:
                await self._trim()

    # Workers.

    async def open_for(self, instance: Instance, function: Function) -> str:
        """Make the folder for a worker that is about to start; "": it gets none."""
        if not function.keep_context or not self._settings.agent.keep_mb:
            return ""
        settings = WorkerSettings(weights="", settings="")
        try:
            path = await self._files("open", partial(self._folder.open_for, instance.id, settings, self._owner))
        except OSError as error:
            self._problem(instance, f"its conversations cannot be saved: {error}")
            return ""
        return str(path)

    async def began(self, instance: Instance, weights: str, argv: Sequence[str]) -> None:
        """Store the settings of a worker that starts with a folder, and compute its model's digest meanwhile."""
        settings = WorkerSettings(weights=weights, settings=settings_digest(argv))
        with self._faults.guard("contexts"):
            await self._files("settings", partial(self._folder.store_settings, instance.id, settings))
        self._own(f"digest {instance.id}", self._compute_digest(weights))

    async def _compute_digest(self, weights: str) -> None:
        with self._faults.guard("model digest"):
            await self._model(weights)

    async def remove_folder(self, instance: str) -> None:
        """Remove the folder of a worker that has ended."""
        self.seating.forget(instance)
        with self._faults.guard("contexts"):
            await self._files("close", partial(self._folder.close_for, instance))

    async def _model(self, weights: str) -> str:
        digest, place = partial(self._folder.model_digest, Path(weights)), str(self._folder.path)
        return await self._looks.look(place, f"digest {slug(weights)}", digest, within_s=DIGEST_S)

    async def _facts(self, instance: Instance) -> tuple[WorkerFacts, str] | None:
        """Return what a worker's conversations depend on, without its model's digest, and the path of its weights;
        None: it has no folder. Raises SlotFailed."""
        stored = await self._files("settings", partial(self._folder.settings_of, instance.id))
        if stored is None or not stored.settings:
            return None
        build = build_of(instance.server, self._engines.builds, await self._calls.build(instance))
        facts = WorkerFacts(
            function=instance.function, revision=instance.revision, build=build, model="", settings=stored.settings
        )
        return facts, stored.weights

    # Saving.

    async def save(self, instance: Instance, unseated: Mapping[str, int] | None) -> None:
        """Save the conversations of a worker that is about to leave, for at most SAVE_S; `unseated` as in `Stop`.
        Raises nothing."""
        slots = () if unseated is None else worth_saving(self.seating.seats.conversations(instance.id, unseated))
        if not slots:
            return
        with self._faults.guard("save contexts"):
            try:
                async with asyncio.timeout(SAVE_S):
                    await self._save(instance, slots)
            except TimeoutError:
                self._problem(instance, f"its conversations could not all be saved within {SAVE_S:.0f} s")
            except (SlotFailed, OSError) as error:
                self._problem(instance, f"its conversations could not be saved: {error}")

    async def _save(self, instance: Instance, slots: Sequence[SlotContext]) -> None:
        began = time.monotonic()
        known = await self._facts(instance)
        if known is None:
            return
        facts, weights = known
        if not facts.build:
            self._problem(instance, "its conversations are not saved: the engine does not tell its build")
            return
        rate = await self._calls.prefill_rate(instance)
        taken: list[SavedContext] = []
        try:
            for slot in slots:
                left_s = began + SAVE_S - time.monotonic()
                if left_s < LEAST_SAVE_S:
                    raise TimeoutError
                try:
                    taken.append(await self._save_slot(instance, slot, facts, rate, left_s))
                except SlotFailed as error:
                    self._problem(instance, f"a conversation could not be saved: {error}")
        finally:
            if taken:
                took_s = time.monotonic() - began
                self._own(f"finish contexts {instance.id}", self._finish(instance, taken, weights, took_s))

    async def _save_slot(
        self, instance: Instance, slot: SlotContext, facts: WorkerFacts, rate: float, within_s: float
    ) -> SavedContext:
        id = secrets.token_hex(8)
        expected = int(slot.tokens * self._size_per_token.get(facts.revision, 0))
        if expected > self._limit:
            raise SlotFailed(f"it takes {expected // MIB} MiB, more than `[agent] keep_mb`")
        if await self._files("free", self._folder.free) < expected + FREE_MB * MIB:
            raise SlotFailed("the disk has no room for it")
        try:
            saved = await self._calls.save(instance, slot.slot, f"{id}.state", within_s)
            if saved.n_saved < slot.tokens:
                raise SlotFailed("its slot held another prompt than its router reported")
            await self._files(f"take {id}", partial(self._folder.take_in, instance.id, id, saved.n_written))
        except BaseException:
            self._own(f"discard {id}", self._discard(instance.id, id))
            raise
        self._size_per_token[facts.revision] = saved.n_written / max(1, saved.n_saved)
        return SavedContext(
            id=id,
            function=facts.function,
            revision=facts.revision,
            mark=slot.mark,
            build=facts.build,
            model="",
            settings=facts.settings,
            prompt_tokens=slot.tokens,
            tokens=saved.n_saved,
            size=saved.n_written,
            digest="",
            at=clock.now(),
            prefill_s=round(slot.tokens / rate, 3) if rate else 0.0,
        )

    async def _discard(self, instance: str, id: str) -> None:
        with self._faults.guard("contexts"):
            await self._files(f"discard {id}", partial(self._folder.discard, instance, id))

    async def _finish(self, instance: Instance, taken: Sequence[SavedContext], weights: str, took_s: float) -> None:
        """Make saved conversations of the files that were taken over. The worker may have ended by now."""
        with self._faults.guard("save contexts"):
            try:
                model = await self._model(weights)
                if why := self._off.get(key_of(taken[0].build, model)):
                    self._switch_function_off(instance.function, why)
                    await self._remove_all(taken)
                    return
                for context in taken:
                    await self._remove_all([c for c in self._saved.values() if c.mark == context.mark])
                    whole = replace(context, model=model)
                    await self._files(f"finish {context.id}", partial(self._folder.finish, whole))
            except OSError as error:
                await self._remove_all(taken)
                await self._read()
                self._problem(instance, f"its conversations could not be saved: {error}")
                return
            await self._read()
            await self._trim()
            tokens, size = sum(c.tokens for c in taken), sum(c.size for c in taken)
            what = f"{len(taken)} conversation{'s' * (len(taken) > 1)}, {tokens:,} tokens, {size / MIB:.1f} MiB"
            self._note(DecisionKind.CONTEXT_SAVED, instance, f"{what}, in {took_s:.2f} s")

    # Restoring.

    async def restore(self, request: RestoreContext) -> ContextAnswer:
        """Restore a conversation into a slot, or say why not."""
        instance, saved = self._ready(request.instance), request.context
        if instance is None:
            return ContextAnswer(why="the instance is not ready here")
        if saved.id in self._busy:
            return ContextAnswer(why="it is being used already")
        disturbances = self.seating.seats.disturbances(instance.id)
        self._busy.add(saved.id)
        began = time.monotonic()
        within_s = min(MOST_RESTORE_S, max(LEAST_RESTORE_S, saved.prefill_s))
        why = ""
        try:
            async with asyncio.timeout(within_s):
                why, tokens = await self._restore(instance, request, within_s)
                if not why and not 0 <= disturbances == self.seating.seats.disturbances(instance.id):
                    why = "a request that no slot was reserved for may have replaced it"
                if not why:
                    where = f"from {request.host} " if request.host else ""
                    took = f"{tokens:,} tokens {where}in {time.monotonic() - began:.2f} s"
                    self._note(DecisionKind.CONTEXT_RESTORED, instance, took)
                    self._noted.pop(instance.function, None)
                    return ContextAnswer(tokens=tokens)
        except TimeoutError:
            why = f"it was not restored within {within_s:.1f} s"
        except (SlotFailed, OSError, aiohttp.ClientError) as error:
            why = str(error) or type(error).__name__
        finally:
            self._busy.discard(saved.id)
            await self._read()
        if request.host:  # what was received of it
            self._own(f"remove {saved.id}", self._forget(saved.id))
        self._problem(instance, f"a saved conversation was not used: {why}")
        return ContextAnswer(why=why)

    async def _restore(self, instance: Instance, request: RestoreContext, within_s: float) -> tuple[str, int]:
        """Return why a conversation is not used, or "" and its tokens. Raises SlotFailed, OSError or ClientError."""
        saved = request.context if request.host else self._saved.get(request.context.id)
        if saved is None:
            return "it is not on this host any more", 0
        known = await self._facts(instance)
        if known is None:
            return "the worker was started without a folder for conversations", 0
        facts = replace(known[0], model=await self._model(known[1]))
        if why := self._off.get(key_of(facts.build, facts.model)):
            self._switch_function_off(instance.function, why)
            return why, 0
        age_s = clock.now() - saved.at
        if (unfit := why_unused(saved, facts, age_s=age_s, most_age_s=self._settings.agent.keep_context_s)) is not None:
            return str(unfit), 0
        if is_slow(saved, self._rates, request.host):
            return "processing its prompt again takes less time", 0
        if request.host:
            await self._fetch(request, saved)
        began = time.monotonic()
        try:
            await self._files(f"hand {saved.id}", partial(self._folder.hand_out, saved, instance.id, self._owner))
            tokens = await self._calls.restore(instance, request.slot, f"{saved.id}.state", within_s)
            if tokens != saved.tokens:
                await self._calls.erase(instance, request.slot, within_s)
                raise SlotFailed("the engine restored another number of tokens than it saved")
        finally:
            self._own(f"discard {saved.id}", self._discard(instance.id, saved.id))
        self._rates.learn(saved.size, time.monotonic() - began)
        return "", tokens

    async def _fetch(self, request: RestoreContext, saved: SavedContext) -> None:
        """Fetch a conversation's file from another host. Raises ClientError or OSError."""
        if saved.size > self._limit:
            raise Damaged("it is larger than `[agent] keep_mb`")
        if self._settings.ca_file and not request.address.startswith("https://"):
            raise Damaged(f"{request.host} has no https address, and `ca_file` is set here")
        began, received = time.monotonic(), 0
        headers = {"Authorization": f"Bearer {request.key}", "Accept-Encoding": "identity"}
        url = f"{request.address}/contexts/{saved.id}"
        file = await self._files(f"receive {saved.id}", partial(self._folder.receive, saved.id))
        try:
            async with (
                aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as http,
                http.get(url, headers=headers, allow_redirects=False, ssl=trust(self._settings.ca_file)) as answer,
            ):
                if answer.status != 200:
                    raise Damaged(f"{request.host} answered {answer.status}")
                async for chunk in answer.content.iter_chunked(MIB):
                    received += len(chunk)
                    if received > saved.size:
                        break
                    await asyncio.to_thread(file.write, chunk)
        finally:
            await asyncio.to_thread(file.close)
        if received != saved.size:
            raise Damaged(f"{request.host} sent another number of bytes than it lists")
        self._rates.learn(received, time.monotonic() - began, request.host)

    def lend(self, id: str) -> Generator[bytes] | None:
        """Return the content of a saved conversation for another host, after which it is not here any more; None:
        there is none, or it is being used. The iterator blocks."""
        saved = self._saved.get(id)
        if saved is None or id in self._busy:
            return None
        return self._lent(saved)

    def _lent(self, saved: SavedContext) -> Generator[bytes]:
        self._busy.add(saved.id)
        try:
            yield from self._folder.read(saved)
        finally:
            self._busy.discard(saved.id)

    async def reread(self) -> None:
        """Publish what is saved, after a conversation was lent."""
        with self._faults.guard("contexts"):
            await self._read()

    # Removing.

    async def remove(self, ids: Collection[str], *, all: bool = False) -> list[SavedContext]:
        """Remove saved conversations; with `all` every one, and try again what is switched off. Return the removed."""
        removed = [c for c in self._saved.values() if (all or c.id in ids) and c.id not in self._busy]
        await self._remove_all(removed)
        if all:
            await self._files("on", self._folder.switch_on)
            self._off, self._functions_off = {}, {}
        await self._read()
        return removed

    async def switch_off(self, context: SavedContext, why: str) -> None:
        """Save and restore nothing any more for a build and a model: a restore brought nothing."""
        key = key_of(context.build, context.model)
        if key in self._off:
            return
        with self._faults.guard("contexts"):
            await self._files("switch off", partial(self._folder.switch_off, key, why))
            self._off = {**self._off, key: why}
            self._functions_off = {**self._functions_off, context.function: why}
            await self._remove_all([c for c in self._saved.values() if key_of(c.build, c.model) == key])
            await self._read()
        self._tell(ContextNoted(DecisionKind.CONTEXT_OFF, context.function, "", why))

    def _switch_function_off(self, function: str, why: str) -> None:
        if self._functions_off.get(function) != why:
            self._functions_off = {**self._functions_off, function: why}
            self._publish()

    async def _remove_all(self, contexts: Iterable[SavedContext]) -> None:
        for context in contexts:
            await self._remove(context.id)

    async def _remove(self, id: str) -> None:
        await self._files(f"remove {id}", partial(self._folder.remove, id))
        self._saved.pop(id, None)

    async def _forget(self, id: str) -> None:
        with self._faults.guard("contexts"):
            await self._remove(id)

    async def _trim(self) -> None:
        saved = [c for c in self._saved.values() if c.id not in self._busy]
        most_age_s = self._settings.agent.keep_context_s
        if remove := to_remove(saved, self._limit, MOST, now=clock.now(), most_age_s=most_age_s):
            for id in remove:
                await self._remove(id)
            self._publish()
            log.info("contexts_removed", removed=len(remove))

    async def _read(self) -> None:
        """Read the folder, and publish what it has."""
        with contextlib.suppress(OSError):
            self._saved = {c.id: c for c in await self._files("list", self._folder.all)}
            self._publish()

    def _publish(self) -> None:
        contexts, record = tuple(self._saved.values()), self._record()
        if (contexts, self._functions_off) != (record.contexts, record.contexts_off):
            self._tell(HostRead(contexts=contexts, contexts_off=self._functions_off))

    # Helpers.

    @property
    def _limit(self) -> int:
        return self._settings.agent.keep_mb * MIB

    def _ready(self, instance: str) -> Instance | None:
        ready = (i for i in self._record().instances if i.id == instance and i.state is State.READY)
        return next(ready, None)

    async def _files(self, kind: str, work: Callable[[], T]) -> T:
        """Run work on the folder. Raises OSError."""
        return await self._looks.look(str(self._folder.path), kind, work, question=object(), within_s=FILES_S)

    def _note(self, kind: DecisionKind, instance: Instance, why: str) -> None:
        self._tell(ContextNoted(kind, instance.function, instance.id, why))

    def _problem(self, instance: Instance, why: str) -> None:
        """Note a problem of a function, unless it is the last one that was noted."""
        if self._noted.get(instance.function) != why:
            self._noted[instance.function] = why
            self._note(DecisionKind.CONTEXT_UNUSED, instance, why)


def build_of(server: str, builds: dict[str, str], info: str) -> str:
    """Return the name of an engine's build; "": it cannot be told from others. `info` is what the server reports:
    `b0-unknown` from one that was built without its number."""
    package = builds.get(server, "")
    own = "" if not info or info.startswith("b0-") else info
    return " ".join(filter(None, (server, package, own))) if package or own else ""
