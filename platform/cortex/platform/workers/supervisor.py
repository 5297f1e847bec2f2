"""Performs the scheduler's effects: starts, watches and stops workers, and kills what they leave.

It decides nothing. Every effect ends in an event: a spawned worker answers or exits, a stopped one exits, and an exited
one is reclaimed. An exception in an effect also becomes an event, or the effect is retried, so no decision is lost.
"""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from cortex.functions.launch import CannotLaunch, Launch, LaunchContext, launch, vllm
from cortex.functions.lifecycle import State
from cortex.functions.servers import COMMAND
from cortex.functions.spec import Engine
from cortex.functions.variants import adapter_name, adapter_number
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.cancel import cancel_tasks
from cortex.platform.contexts.contexts import Contexts
from cortex.platform.faults import Faults
from cortex.platform.fleet import Fleet
from cortex.platform.host.engines import Engines
from cortex.platform.keys import HostToken
from cortex.platform.launcher.pool import ForkedWorker, LauncherPool
from cortex.platform.process import process_id, termination
from cortex.platform.process.environment import OWNER
from cortex.platform.record import FailureKind, HostRecord, Instance, ProcessId, Tier
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import (
    AdapterAnswer,
    Answer,
    CancelFetch,
    Decision,
    Effect,
    Ending,
    Fetch,
    LoadAdapter,
    Look,
    Park,
    Prove,
    Reclaim,
    Spawn,
    Stop,
    UnloadAdapter,
    Wake,
)
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.failures import evidence_in
from cortex.platform.scheduling.parking import must_sleep
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.serving import address
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.weights.adapters import loads_while_it_runs, without_failed
from cortex.platform.weights.fetches import Fetches
from cortex.platform.workers import cgroup, hardening, launch_context, log_files, process
from cortex.platform.workers.adapter_loads import AdapterLoads
from cortex.platform.workers.checkpoint import Freezer
from cortex.platform.workers.compile_caches import CompileCaches, place_of
from cortex.platform.workers.control_keys import ControlKeys
from cortex.platform.workers.health import HealthChecks
from cortex.platform.workers.kernels import Kernels
from cortex.platform.workers.log_files import log_name
from cortex.platform.workers.ports import NoPort, Ports
from cortex.platform.workers.probe import Probe, opens
from cortex.platform.workers.readahead import read_ahead
from cortex.platform.workers.remains import KILLED_WITHIN_S, Remains, unkillable
from cortex.platform.workers.startup import LogFollower
from cortex.platform.workers.tiers import HolderReading, Tiers
from cortex.platform.workers.worker_user import find_user

log = structlog.get_logger()

PROBE_FIRST_S, WATCH_MOST_S, PROBE_MOST_S = 0.01, 0.5, 0.1
"""The pause after the first probe of a starting worker; the longest watch of its port between two looks at its log; the
longest pause between probes once the port is open."""

AGAIN_S = 2.0
"""Pause before an effect that raised is retried."""
FREEZER_S = 5.0
"""Longest wait for the driver to answer whether it can freeze."""

IMPORTS_LONG = frozenset(("vllm", "llama_cpp.server"))
"""Servers that import for seconds before they open their weights."""


class Supervisor:
    """The worker processes of one agent."""

    def __init__(
        self,
        settings: Settings,
        token: HostToken,
        engines: Engines,
        tell: Callable[[Event], None],
        holders: HolderReading,
        record: Callable[[], HostRecord],
        faults: Faults | None = None,
        reports: Callable[[], Fleet | None] = lambda: None,
    ) -> None:
        self._settings, self._token, self._engines, self._tell = settings, token, engines, tell
        self._record = record
        self._faults = faults or Faults()
        self.looks = disk.looks()
        self.fetches = Fetches(settings, tell, self.looks)
        self._compile_caches = CompileCaches(self.looks, self._faults, settings.agent)
        self.kernels = Kernels(settings, token)
        self._tasks: set[asyncio.Task[None]] = set()
        self._effects: dict[tuple[str, str], asyncio.Task[None]] = {}
        """The running effect by kind and instance."""
        self._children: dict[str, subprocess.Popen[bytes] | ForkedWorker] = {}
        self._watched: dict[str, ProcessId] = {}
        """The workers whose exit `_watch` reports."""
        self._ports = Ports(settings.agent.worker_host, settings.agent.worker_ports)
        self._probe = Probe(token)
        self.health = HealthChecks(self._probe, token, tell)
        self._control = ControlKeys(Path(settings.agent.state_dir))
        self._owner = process.owner(Path(settings.agent.state_dir))
        self._groups = cgroup.home(self._owner)
        self._remains = Remains(self._owner, self._groups, holders, tell)
        self._warm: dict[str, Spawn] = {}
        """Starts from a launcher that are not ready yet. If one fails, it is repeated as a plain start."""
        self._with_adapters: dict[str, Spawn] = {}
        """Starts with adapters that are not ready yet. If one fails of an adapter, it is repeated without that."""
        self._user = find_user(settings.agent.worker_user)
        self.freezer = Freezer(self._user)
        self.tiers = Tiers(self._probe, self._control, self.freezer, holders, record, self.scratch, tell)
        owner = None if self._user is None else (self._user.uid, self._user.gid)
        self.contexts = Contexts(
            settings, token, engines, self.looks, owner, record, reports, tell, self._own, self._faults
        )
        self._adapter_loads = AdapterLoads(settings.agent, self.looks, self.fetches, self._control, self._note, tell)
        # A parked launcher cannot change its user.
        uses_launcher = settings.agent.launcher and "vllm" in engines.tools and self._user is None
        self._launchers = LauncherPool(
            engines.tools["vllm"] if uses_launcher else None,
            base_env=launch_context.LAUNCHER_ENV,
            owner=self._owner,
            log_path=Path(settings.agent.log_dir) / "launcher-vllm.log",
            busy=lambda: any(i.state is State.STARTING for i in self._record().instances),
            on_state=lambda state, mb: self._tell(events.LauncherChanged("vllm", state, mb)),
        )

    def keep_launcher(self) -> None:
        """Keep a launcher parked from now on. Call it after `clear_orphans`."""
        self._own("launcher", self._faults.run("launcher", self._launchers.keep))

    async def close(self) -> None:
        """Stop watching. The workers keep running."""
        await cancel_tasks(self._tasks)
        self.fetches.close()
        await self._launchers.close()
        await self._probe.close()
        self.freezer.close()
        cgroup.remove_home(self._groups)

    def perform(self, effect: Effect) -> None:
        """Start an effect. It neither waits nor raises; the result is an event."""
        match effect:
            case Fetch(instance, function):
                self._begin("fetch", instance, self.fetches.fetch(instance, function), self._fetch_failed)
            case CancelFetch(instance, function):
                self._begin("call off", instance, self._cancel_fetch(effect))
            case Spawn(instance):
                self._begin("spawn", instance, self._spawn(effect), self._spawn_failed)
            case LoadAdapter(instance, _, adapter):
                name = adapter_name(adapter.id, adapter_number(adapter.source))
                self._begin(f"adapter {name}", instance, self._adapter_loads.load(effect), self._load_failed(effect))
            case UnloadAdapter(instance, name):  # another load of it replaces this
                self._begin(f"adapter {name}", instance, self._adapter_loads.unload(effect))
            case Look(instance):
                self._begin("look", instance, self.health.look(instance), self._look_failed)
            case Prove(instance):
                self._begin("prove", instance, self._prove(effect))
            case Park(instance):
                self._begin("move", instance, self._park(effect), self._park_failed)
            case Wake(instance):
                self._begin("move", instance, self.tiers.wake(effect), self._wake_failed)
            case Stop(instance):
                self._begin("stop", instance, self._insist("stop", instance, lambda: self._stop(effect)))
            case Reclaim(instance):
                self._begin("reclaim", instance, self._insist("reclaim", instance, lambda: self._reclaim(instance)))
            case Decision() | Answer() | AdapterAnswer() | Ending():
                pass  # the agent's

    def _begin(
        self,
        kind: str,
        instance: Instance,
        work: Coroutine[Any, Any, None],
        failed: Callable[[Instance, Exception], None] | None = None,
    ) -> None:
        """Run an effect of an instance, replacing a running one of the same kind."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._faults.note(kind, error)
                if failed is not None:
                    failed(instance, error)

        name = (kind, instance.id)
        if (previous := self._effects.pop(name, None)) is not None:
            previous.cancel()
        task = self._effects[name] = self._own(f"{kind} {instance.id}", run())
        task.add_done_callback(lambda _: work.close())  # a task that is cancelled before its first step awaits nothing
        task.add_done_callback(lambda t: self._effects.pop(name) if self._effects.get(name) is t else None)

    async def _insist(self, kind: str, instance: Instance, work: Callable[[], Awaitable[None]]) -> None:
        """Retry work until it succeeds; otherwise the instance would keep its devices."""
        while True:
            try:
                return await work()
            except Exception as error:
                self._faults.note(kind, error)
                problem = f"the agent failed to {kind} it: {type(error).__name__}"
                self._tell(events.EndDelayed(instance.id, problem))
                await asyncio.sleep(AGAIN_S)

    def _own(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel_fetch(self, effect: CancelFetch) -> None:
        fetch = self._effects.pop(("fetch", effect.instance.id), None)
        if fetch is not None:
            await cancel_tasks([fetch])
        await self.fetches.release(effect.function)

    def _fetch_failed(self, instance: Instance, error: Exception) -> None:
        reason = f"the weights could not be fetched: {type(error).__name__}"
        self._tell(events.FetchFailed(instance.id, reason))

    def _spawn_failed(self, instance: Instance, error: Exception) -> None:
        """Report that a worker could not be started. A missing port or a hung folder is not a crash."""
        self._ports.release(instance.id)
        kind = FailureKind.ROOM if isinstance(error, NoPort | NoAnswer) else FailureKind.CRASH
        ours = isinstance(error, NoPort | NoAnswer | CannotLaunch | OSError)
        reason = f"the worker could not be started: {error if ours else type(error).__name__}"
        self._tell(events.SpawnFailed(instance.id, reason, kind))

    def _park_failed(self, instance: Instance, error: Exception) -> None:
        self._tell(events.ParkFailed(instance.id, instance.parks_to or Tier.SLEEP, type(error).__name__))

    def _wake_failed(self, instance: Instance, error: Exception) -> None:
        self._tell(events.StartFailed(instance.id, f"its memory could not be moved back: {type(error).__name__}"))

    def _load_failed(self, effect: LoadAdapter) -> Callable[[Instance, Exception], None]:
        def failed(instance: Instance, error: Exception) -> None:
            adapter, reason = effect.adapter, f"its adapter could not be loaded: {type(error).__name__}"
            self._tell(events.AdapterFailed(instance.id, adapter.id, adapter_number(adapter.source), reason))

        return failed

    def _look_failed(self, instance: Instance, _: Exception) -> None:
        self._tell(events.Looked(instance.id, None, 0))

    # After a restart.

    async def freeze_problem(self) -> str:
        """Return why this host cannot freeze a worker, as far as that is known within `FREEZER_S`; "": it can."""
        if self.freezer.probe_is_due:
            await asyncio.wait((self._own("freezer", self._probe_freezer()),), timeout=FREEZER_S)
        return self.freezer.problem

    async def _probe_freezer(self) -> None:
        with self._faults.guard("freezer"):
            await self.freezer.probe()

    def adopt(self, saved: SavedWorker) -> None:
        """Watch a worker started by an earlier agent of this host."""
        instance = saved.instance
        leader = instance.process
        if leader is None:
            return
        self._ports.hold(instance.id, instance.function, int(instance.url.rpartition(":")[2]))
        self._watch_over(instance.id, instance.function, leader)
        if instance.state is State.STARTING and instance.parks_to is None:
            reading = self._follow_log(instance.function, instance.id, instance.server, warm=instance.warm)
            self._await(instance, leader, reading)

    async def clear_orphans(self, instances: Collection[str]) -> None:
        """Kill processes with the mark of this host's agents that belong to none of these instances."""
        await self._remains.clear_unknown(instances)

    # Starting.

    def log_path(self, function: str, instance: str) -> Path:
        """Return the path of an instance's log."""
        return Path(self._settings.agent.log_dir) / log_name(function, instance)

    def _follow_log(self, function: str, instance: str, server: str, *, warm: bool) -> LogFollower:
        version = self._engines.versions.get(server, "")
        return LogFollower(self.log_path(function, instance), server, warm=warm, version=version)

    async def _spawn(self, effect: Spawn, *, not_warm: str = "") -> None:
        """Start a worker, unless its instance has been stopped meanwhile."""
        instance, function = effect.instance, effect.function
        log_path = self.log_path(function.id, instance.id)
        running = {self.log_path(function.id, i).name for i in self._ports.held()}
        await self.looks.look(str(log_path.parent), "logs", partial(log_files.make_room, log_path.parent, running))
        if not self._is_starting(instance.id):
            self._tell(events.Exited(instance.id, "was stopped before it was started"))
            return
        context = self._launch_context(effect)
        cache = Path(context.cache)
        compiled, slots = (
            await self._compile_caches.compiled(instance, cache),
            await self.contexts.open_for(instance, function),
        )
        context = replace(context, compiled=compiled, saved_slots=slots)
        command = launch(launch_context.with_local_paths(function, effect.weights), context)
        paths = (command.argv[0], effect.weights.path, "" if vllm.is_movable(context.version) else context.cache)
        place = place_of(*paths) if command.compiles else ""
        kernels_from = await self._fetch_kernels(instance, cache, command.compiles, place)
        if not self._is_starting(instance.id):
            self._tell(events.Exited(instance.id, "was stopped before it was started"))
            return
        if slots:
            await self.contexts.began(instance, effect.weights.path, command.argv)
        for path, content in command.files.items():
            process.write_private(Path(path), content.encode(), self._user)
        child, path, warm = await self._start_process(instance.id, command, log_path, not_warm, context.cache)
        # The process exists now: nothing may fail before it is watched.
        leader = ProcessId(process_id.boot_id(), child.pid, process_id.started_at(child.pid))
        if warm:
            self._warm[instance.id] = effect
        at_start = () if loads_while_it_runs(function) else tuple(effect.weights.adapters)
        if at_start:
            self._with_adapters[instance.id] = effect
        self._children[instance.id] = child
        self._watch_over(instance.id, function.id, leader)
        url = f"http://{address.join(self._settings.agent.worker_host, context.port)}"
        self._tell(
            events.Spawned(
                instance.id,
                leader,
                url,
                server=command.server,
                health_path=command.health_path,
                served_name=command.served_name,
                path=f"{path}, kernels from {kernels_from}" if kernels_from else path,
                warm=warm,
                sleeps=context.sleeps,
                adapters={id: number for number, id in enumerate(at_start)},
                adapter_problems=effect.weights.adapter_problems,
                tricks=command.tricks,
            )
        )
        self._compile_caches.begin(instance, cache, command.compiles, place)
        log.info("worker_spawned", function=function.id, instance=instance.id, pid=child.pid, path=path)
        reading = self._follow_log(function.id, instance.id, command.server, warm=warm)
        worker = replace(instance, url=url, server=command.server, health_path=command.health_path)
        self._await(replace(worker, served_name=command.served_name), leader, reading)
        if command.server in IMPORTS_LONG:
            self._own("read ahead", self._read_ahead(instance.id, function.id, Path(effect.weights.path)))
        if command.server == "vllm" and context.cache:
            self._own("prune", self._compile_caches.prune(cache))
            self._own("tidy kernels", self.kernels.tidy())

    async def _fetch_kernels(self, instance: Instance, cache: Path, compiles: str, place: str) -> str:
        """Fetch the code that a start would compile from a neighbour that has it. Return its host, or ""."""
        if not compiles or not self._settings.agent.kernels_from:
            return ""
        self._tell(events.SignOfLife(instance.id, "asking for kernels"))
        with self._faults.guard("kernels"):
            return await self.kernels.fetch(cache, self.kernels.request(cache, instance.revision, compiles, place))
        return ""

    def _launch_context(self, effect: Spawn) -> LaunchContext:
        """Return what a worker is given on this host, with a port and a temporary directory of its own."""
        instance, function = effect.instance, effect.function
        port = self._ports.take(instance.id, function.id, checks_key=function.engine is not Engine.COMMAND)
        hardening.temporary(instance.id, self._user)
        sleeps = must_sleep(instance, function, self._record())
        control_key = self._control_key(instance.id) if sleeps or effect.weights.adapter_rank else ""
        return launch_context.launch_context(
            effect,
            self._settings.agent,
            self._engines,
            self._record().devices,
            port=port,
            key=self._token.worker_key(instance.id),
            control_key=control_key,
            sleeps=sleeps and bool(control_key),
            scratch=str(self.scratch(instance.id)),
            layers=effect.weights.layers if launch_context.exceeds_placement(effect) else 0,
            adapters=tuple(effect.weights.adapters.values()),
            adapter_rank=effect.weights.adapter_rank if control_key else 0,
            tricks_off=self._record().tricks_off.get(instance.revision, ()),
        )

    def _control_key(self, instance: str) -> str:
        """Return an instance's control key; "" when it cannot be read or written: its engine starts without sleep."""
        try:
            return self._control.key(instance)
        except OSError as error:
            log.warning("no_control_key", instance=instance, why=str(error))
            return ""

    def _is_starting(self, instance: str) -> bool:
        return any(i.id == instance and i.state is State.STARTING for i in self._record().instances)

    async def _read_ahead(self, instance: str, function: str, weights: Path) -> None:
        with self._faults.guard("read ahead"):
            done = await read_ahead(weights, lambda: self._is_starting(instance), looks=self.looks)
            log.info("weights_read_ahead", function=function, instance=instance, mb=done >> 20)

    async def _start_process(
        self, instance: str, command: Launch, log_path: Path, not_warm: str, cache: str
    ) -> tuple[subprocess.Popen[bytes] | ForkedWorker, str, bool]:
        """Start a worker's process, from the parked launcher if possible. Return it, the kind of start as text, and
        whether it was warm."""
        env = {"TMPDIR": str(hardening.temporary_path(instance)), **command.env, OWNER: self._owner}
        path = "plain"
        if command.server == "vllm" and self._settings.agent.launcher and self._user is None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            full_env, group = process.worker_environment(env, instance), cgroup.create(self._groups, instance)
            child = not_warm or await self._launchers.hand_over(command.argv, full_env, log_path, group)
            if not isinstance(child, str):
                return child, "warm", True
            path = f"plain: {child}"
        argv: Sequence[str] = command.argv
        if self._user is not None:
            self._user.own(Path(cache))
            argv, env = self._user.command(argv), {**self._user.environment(cache), **env}
        argv = cgroup.wrap_command(self._groups, instance, argv)
        return process.spawn(argv, env, log_path, instance), path, False

    def _watch_over(self, instance: str, function: str, leader: ProcessId) -> None:
        self._watched[instance] = leader
        self._own(f"watch {instance}", self._watch(instance, function, leader))

    async def _watch(self, instance: str, function: str, leader: ProcessId) -> None:
        """Report the worker's exit. A warm start that failed is repeated as a plain start instead."""
        await termination.wait_for_exit(leader)
        with self._faults.guard("watch"):
            await self._remains.prove(instance, leader)
        child = self._children.pop(instance, None)
        how = termination.describe_exit(await asyncio.to_thread(child.wait) if child else None)
        self._ports.release(instance)
        last = await self._last_lines(function, instance)
        again = self._with_adapters.pop(instance, None)
        weights = without_failed(again.weights, last) if again else None
        effect, not_warm = self._warm.pop(instance, None), f"the warm start {how}"
        if again and weights:
            effect, not_warm = replace(again, weights=weights), ""
        if effect:
            log.warning("start_repeated", function=function, instance=instance, how=how)
            with self._faults.guard("watch"):
                await self._remains.kill(instance, function)
            if self._is_starting(instance):
                self._watched.pop(instance, None)
                self._begin("spawn", effect.instance, self._spawn(effect, not_warm=not_warm), self._spawn_failed)
                return
        self._watched.pop(instance, None)
        self._tell(events.Exited(instance, how, evidence_in(last)))
        log.info("worker_ended", function=function, instance=instance, how=how)

    def _await(self, worker: Instance, leader: ProcessId, reading: LogFollower) -> None:
        async def wait_until_ready() -> None:
            while process_id.is_alive(leader) and self._is_starting(worker.id):
                with self._faults.guard("await ready"):
                    await self._await_ready(worker, leader, reading)
                    return
                await asyncio.sleep(AGAIN_S)

        self._own(f"await {worker.id}", wait_until_ready())

    async def _await_ready(self, worker: Instance, leader: ProcessId, reading: LogFollower) -> None:
        """Watch the port of a starting worker, and then probe it, until it is healthy and serves its model, or has
        exited.

        The scheduler keeps the clocks; this only tells of signs of life: a log that grows, and what it says.
        """
        id, wait, is_open, seen = worker.id, PROBE_FIRST_S, False, reading.startup
        self._tell(events.SignOfLife(id, seen.step))
        while process_id.is_alive(leader) and self._is_starting(id):
            if not is_open and (is_open := await opens(worker.url, wait)):
                wait = PROBE_FIRST_S
            served = await self._probe.served_models(worker) if is_open else None
            if served is not None and worker.name_at_worker in served:
                self._warm.pop(id, None)
                self._with_adapters.pop(id, None)
                model = replace(served[worker.name_at_worker], cache_mb=seen.cache_mb)
                self._tell(events.ModelDescribed(id, model))
                self._tell(events.Answered(id))
                await self._compile_caches.finish(id)
                return
            if served is not None:
                await self._misfit(worker, served)
                return
            if await self._grew(reading):
                self._tell(events.SignOfLife(id, seen.step, seen.progress))
            if is_open:
                await asyncio.sleep(wait)
            wait = min(wait * 1.3, PROBE_MOST_S if is_open else WATCH_MOST_S)

    async def _grew(self, reading: LogFollower) -> bool:
        """Return whether a worker wrote to its log. False when the log does not answer."""
        with contextlib.suppress(NoAnswer):
            return await self.looks.look(str(reading.log), "read", reading.read_new, question=object())
        return False

    async def _last_lines(self, function: str, instance: str) -> tuple[str, ...]:
        """Return the last lines of a worker's log; none when it cannot be read."""
        path = self.log_path(function, instance)
        with self._faults.guard("last lines"), contextlib.suppress(NoAnswer):
            return await self.looks.look(str(path), "tail", partial(log_files.tail, path), question=object())
        return ()

    async def _note(self, function: str, instance: str, text: str) -> None:
        """Add a line to a worker's log."""
        path = self.log_path(function, instance)
        with self._faults.guard("last lines"), contextlib.suppress(NoAnswer):
            await self.looks.look(str(path), "note", partial(log_files.append_note, path, text), question=object())

    async def _misfit(self, worker: Instance, served: Collection[str]) -> None:
        """Report a worker that serves other models. Their names are untrusted and go to its log only."""
        text = f"the worker serves {', '.join(served) or 'nothing'} instead of {worker.name_at_worker}"
        await self._note(worker.function, worker.id, text)
        other = f"{len(served)} other {'model' if len(served) == 1 else 'models'}" if served else "no model"
        reason = f"the worker serves {other} instead of {worker.name_at_worker}"
        if served and worker.server == COMMAND:
            reason += ": set served_name to the name that its program lists (the worker's log has it)"
        last = await self._last_lines(worker.function, worker.id)
        self._tell(events.StartFailed(worker.id, reason, evidence_in(last)))

    # While it is ready.

    async def check_parked(self, instance: Instance) -> None:
        """Kill a parked worker of which a process has ended: it cannot return. The end of its first process alone is
        noticed at once."""
        if instance.process is not None and self.freezer.has_lost_a_process(instance.id):
            log.warning("frozen_worker_broken", function=instance.function, instance=instance.id, pid=instance.pid)
            process.signal_worker(instance.process, signal.SIGKILL)
        elif instance.state is State.SLEEPING and instance.server == "vllm":
            await self.health.end_if_failed(instance)

    async def used_mb(self, instance: Instance, engine: str) -> int | None:
        """Return a worker's measured memory over all its devices; None if it cannot be measured."""
        if engine == Engine.FAKE:
            return await asyncio.to_thread(process.number_in, self.scratch(instance.id))
        return await asyncio.to_thread(process.resident_mb, instance.pid)

    def scratch(self, instance: str) -> Path:
        """Return the path of an instance's scratch file."""
        return hardening.temporary_path(instance) / "scratch"

    # Leaving.

    async def _prove(self, effect: Prove) -> None:
        """Send a worker a request, which takes any slot."""
        with self.contexts.seating.unknown_slots(effect.instance.id):
            await self.health.prove(effect)

    async def _park(self, effect: Park) -> None:
        """Save the conversations of a worker that cannot be called while it is frozen, and park it."""
        if effect.tier is Tier.FREEZE:
            await self.contexts.save(effect.instance, effect.unseated)
            self.contexts.seating.forget(effect.instance.id)  # the requests that prove its return take any slot
        await self.tiers.park(effect)

    async def _stop(self, effect: Stop) -> None:
        """Save its conversations, send TERM, wait for the grace, then send KILL until it has ended. `_watch` reports a
        watched worker.

        One that the driver may have locked gets KILL at once: it can handle no signal.
        """
        instance = effect.instance
        self._warm.pop(instance.id, None)
        self._with_adapters.pop(instance.id, None)
        if (move := self._effects.pop(("move", instance.id), None)) is not None:
            move.cancel()
        starting = self._effects.get(("spawn", instance.id))
        if starting is not None:  # its process may start at any moment
            await asyncio.wait((starting,), timeout=KILLED_WITHIN_S)
        await self.contexts.save(instance, effect.unseated)
        leader = self._watched.get(instance.id) or instance.process
        number, wait_s = signal.SIGTERM, effect.grace_s
        if self.tiers.may_be_locked(instance):
            number, wait_s = signal.SIGKILL, KILLED_WITHIN_S
        while leader is not None and process_id.is_alive(leader):
            process.signal_worker(leader, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await termination.wait_for_exit(leader)
            if number is signal.SIGKILL and process_id.is_alive(leader):
                self._tell(events.EndDelayed(instance.id, unkillable((leader,))))
            number, wait_s = signal.SIGKILL, KILLED_WITHIN_S
        if instance.id not in self._watched:
            self._tell(events.Exited(instance.id, "was not running"))

    async def _reclaim(self, instance: Instance) -> None:
        """End all that a worker left, and give its port back."""
        await self._remains.clear(instance)
        self.tiers.forget(instance.id)
        self._own(f"close contexts {instance.id}", self.contexts.remove_folder(instance.id))
        self._compile_caches.forget(instance.id)
        self._ports.release(instance.id)
        self._tell(events.Reclaimed(instance.id))
