"""What must hold in every run, and when it is checked.

At every decision of an agent: device memory, epochs. At every script in Redis: one writer each, claims. At every
signal: nothing in flight is cut. At every outcome: the right model. At the end, when faults and load are over: every
request has ended, no worker is an orphan, views and record agree, `min` and `max` hold, each function can be served.
"""

import signal
from collections import defaultdict
from collections.abc import Callable

from msgspec import Struct

from cortex.functions.lifecycle import LIVE, PARKED, State
from cortex.functions.spec import revision
from cortex.platform import registry
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.fleet import use
from cortex.platform.record import HostRecord, Instance, RouterReport, Tier
from cortex.platform.record_codec import decode_as
from cortex.platform.scheduling.parking import is_leaving
from cortex.platform.scheduling.placement import NoRoom, need, place
from cortex.platform.scheduling.start_modes import is_spare
from cortex.platform.workers.checkpoint_driver import CudaState
from tests.simulation.machine import Machine
from tests.simulation.processes import SimulatedAgent
from tests.simulation.scenario import Scenario
from tests.simulation.virtual_time import Phase
from tests.simulation.worker import Worker
from tests.simulation.world import Outcome, World

LOST_S = 3.0
"""How long after Redis lost its data a record may lack what was written before."""
NOTICED_S = 1.0
"""How long after a router has come back from a partition an agent may act on what it read before."""
CLAIM = "cortex:claim:"
RECORD = "cortex:host:"
EFFECTS = {
    State.STARTING: ("spawn", "move"),
    State.PARKING: ("move",),
    State.STOPPING: ("stop",),
    State.RECLAIMING: ("reclaim",),
}
"""What the supervisor does about an instance in a state."""


def present_mb(instance: Instance) -> int:
    """Return the memory that a process holds on each device now: less than is given away while it is placed."""
    if instance.state in (State.FETCHING, State.PLACING):
        return instance.parked_mb if instance.parked is Tier.SLEEP else 0
    return instance.held_mb


def _is_settled(instance: Instance) -> bool:
    return instance.state is State.READY or (instance.state in PARKED and not is_leaving(instance))


class Claim(Struct):
    """A claim that a router took, what the record listed then, and the starts that came of it."""

    at: float
    token: str
    listed: dict[str, str]
    """The function's live instances, with their hosts."""
    starts: int = 0


class Invariants:
    """Watches one world."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world, self.scenario = world, scenario
        self.peace = float("inf")
        """When faults and load ended."""
        self.broken: set[str] = set()
        """Instances whose workers a fault ended or hung."""
        self.may_cut: set[str] = set()
        """Functions that an operator cools at once."""
        self.after: dict[int, Callable[[], object]] = {}
        """What follows the end of a request."""
        self._claims: dict[tuple[str, str], Claim] = {}
        self._epochs: dict[str, int] = {}
        self._states: dict[str, dict[str, State]] = {}
        """The last states of the instances, by host."""
        self._restless = ""
        world.on_outcome = self._outcome
        world.on_decision = self._decision
        world.redis.on_script = self._script

    def watch_machine(self, machine: Machine) -> None:
        """Watch a machine's workers and its agent's answers."""
        machine.on_spawn = self._spawned
        machine.on_signal = self._signal
        machine.on_refusal = self._refused
        machine.on_damage = self._damaged
        self.world.servers[machine.name].on_ensure = self._ensured

    # Clients.

    def _outcome(self, outcome: Outcome) -> None:
        if outcome.status == 200 and outcome.model != outcome.function and (outcome.model or not outcome.why):
            self.world.fail(
                "no answer by another model", f"request {outcome.request} for {outcome.function} got {outcome.model}"
            )

        if then := self.after.pop(outcome.request, None):
            then()

    # Redis.

    def _script(self, place: str, script: str, keys: object, arguments: object, result: object) -> None:
        assert isinstance(keys, tuple) and isinstance(arguments, tuple)
        if not keys:  # it only reads
            return
        key = keys[0]
        self.world.digest.update(repr((place, keys, arguments)).encode())
        if script == registry._TAKE and key.startswith(CLAIM) and result:
            function = key.removeprefix(CLAIM)
            self._claims[place, function] = Claim(self.world.now, arguments[0], self._listed(function))
        elif script == registry._PUBLISH_HOST and key != f"{RECORD}{place}":
            self.world.fail("one writer each", f"{place} wrote {key}")

    def _listed(self, function: str) -> dict[str, str]:
        """Return the live instances of a function in the record, by revision of the present catalogue."""
        rev = revision(self.world.catalogue.functions[function])
        return {
            i.id: host.name
            for host in self._records()
            for i in host.instances
            if (i.function, i.revision) == (function, rev) and i.state in LIVE
        }

    def _records(self) -> list[HostRecord]:
        model = self.world.redis.model
        values = (model.call("GET", f"{RECORD}{name}") for name in self.world.machines)
        return [host for value in values if (host := decode_as(value, HostRecord))]

    # Agents.

    def _ensured(
        self, router: str, host: str, request: Ensure, answer: Accepted | Rejected, before: frozenset[str]
    ) -> None:
        """A start that a router proposed: under its claim, only one, and only when the record listed none."""
        function = request.function.id
        if not isinstance(answer, Accepted) or answer.instance in before:
            return
        self._check_recorded(host, answer)
        claim = self._claims.get((router, function))
        if claim is None:
            self.world.fail("a start needs a claim", f"{router} started {function} on {host} without one")
            return
        claim.starts += 1
        if claim.starts > 1:
            self.world.fail("one start per claim", f"{router} started {function} {claim.starts} times under one claim")
        if request.beside or revision(request.function) != revision(self.world.catalogue.functions[function]):
            return
        slot = self.world.routers[router]
        assert slot.router is not None and slot.process is not None
        suspects = set(slot.process.context.run(slot.router.view.suspects))
        present = self._listed(function)
        for instance, other in claim.listed.items():
            if instance in present and instance not in suspects and self._lives(instance, other):
                self.world.fail(
                    "no start beside a listed instance",
                    f"{router} started {function} on {host} under a claim of {claim.at:.3f} s, when the record listed"
                    f" {instance} on {other}",
                )

    def _check_recorded(self, host: str, answer: Accepted) -> None:
        """A start that an agent accepts is in the record: otherwise the next claim's holder starts another."""
        redis, own = self.world.redis, self.world.agents[host].scheduler.record()
        is_gone = answer.instance not in {i.id for i in own.instances}  # it ended again before the answer
        if is_gone or self.world.now - redis.emptied_at < LOST_S:
            return
        recorded = decode_as(redis.model.call("GET", f"{RECORD}{host}"), HostRecord)
        if recorded is None or answer.instance not in {i.id for i in recorded.instances}:
            self.world.fail("an accepted start is recorded", f"no record shows {answer.instance} of {host}")

    def _lives(self, instance: str, host: str) -> bool:
        agent, process = self.world.agents.get(host), self.world.machines[host].agent
        if agent is None or process is None or process.phase is not Phase.RUNNING:
            return False
        return any(i.id == instance and i.state in LIVE for i in agent.scheduler.record().instances)

    def _decision(self, agent: SimulatedAgent) -> None:
        record = agent.scheduler.record()
        usage: dict[str, int] = defaultdict(int)
        states, self._states[record.name] = self._states.get(record.name, {}), {i.id: i.state for i in record.instances}
        for instance in record.instances:
            if states.get(instance.id) is not instance.state:
                why = f": {instance.why}" if instance.why else ""
                self.world.note(f"{record.name} {instance.function} {instance.id} is {instance.state}{why}")
            for name in instance.devices:
                usage[name] += present_mb(instance)
        ram_mb = sum(i.ram_mb for i in record.instances)
        if record.tiers and ram_mb > record.park_ram_mb:
            self.world.fail(
                "parked instances fit into the RAM for them", f"{ram_mb} MB of {record.park_ram_mb} MB are given away"
            )
        spares = [i.id for i in record.instances if is_spare(agent.scheduler.state, i)]
        if len(spares) > 1 or any(i.waits_for for i in record.instances if i.id in spares):
            self.world.fail("one instance is replaced at a time, and none leaves for that", f"{record.name}: {spares}")
        for device in record.devices:
            if usage[device.id] > device.budget_mb:
                self.world.fail(
                    "device memory is never over its budget",
                    f"{device.id} has {device.budget_mb} MB and {usage[device.id]} MB are given away",
                )
        if record.epoch < self._epochs.get(record.name, 0):
            self.world.fail("epochs rise", f"{record.name} went from {self._epochs[record.name]} to {record.epoch}")
        self._epochs[record.name] = record.epoch

    def _spawned(self, worker: Worker) -> None:
        self.world.starts[worker.function.id] += 1
        self.world.note(f"spawned {worker.function.id} {worker.instance} on {worker.machine.name}:{worker.port}")
        machine = worker.machine
        for device in worker.devices:
            held = sum(w.held_mb for w in machine.alive() if device in w.devices)
            if held > machine.devices[device]:
                self.world.fail("processes fit on their devices", f"{device}: {held} MB of {machine.devices[device]}")

    def _refused(self, worker: Worker, router: str) -> None:
        """A worker that sleeps or is frozen gets a request only of a router that does not report: the agent waits for
        no other."""
        if self._reports(router):
            self.world.fail(
                "no request reaches a parked worker",
                f"{worker.machine.name} {worker.function.id} {worker.instance} got one of {router}",
            )

    def _damaged(self, worker: Worker) -> None:
        """A worker that computes something else than before it was frozen never serves."""
        self.world.fail(
            "no answer comes from damaged memory", f"{worker.machine.name} {worker.function.id} {worker.instance}"
        )

    def _reports(self, router: str) -> bool:
        slot = self.world.routers.get(router)
        if slot is None or slot.router is None or slot.process is None:
            return False
        key = f"cortex:router:{slot.router.id}"
        if self.world.now - self.world.redis.appeared.get(key, 0.0) < NOTICED_S:
            return False
        report = decode_as(self.world.redis.model.call("GET", key), RouterReport)
        # After a backward step of its clock Redis keeps reports for longer than agents heed them.
        now = slot.process.clock.origin + slot.process.monotonic_s + self.world.now
        return report is not None and now - report.at < registry.ROUTER_TTL_S

    def _signal(self, worker: Worker, number: int) -> None:
        """A worker is stopped only when no router that reports has a request there."""
        self.world.note(f"{signal.Signals(number).name} to {worker.function.id} {worker.instance}")
        if worker.hung or not worker.ready or worker.function.id in self.may_cut:
            return
        for router in worker.open.values():
            if self._reports(router):
                self.world.fail(
                    "nothing in flight is cut",
                    f"{worker.machine.name} stops {worker.function.id} {worker.instance} with a request of {router}",
                )

    # All the time, and at the end.

    def check_all(self) -> None:
        """Check what has no event of its own."""
        for name, agent in self.world.agents.items():
            for fault in agent.faults.all():
                self.world.fail("background work raises nothing", f"agent {name}: {fault.work} raised {fault.kind}")
            self._check_effects(name, agent)
        for name, slot in self.world.routers.items():
            for fault in slot.router.faults.all() if slot.router else ():
                self.world.fail("background work raises nothing", f"router {name}: {fault.work} raised {fault.kind}")

    def _check_effects(self, name: str, agent: SimulatedAgent) -> None:
        """What the scheduler waits for is under way."""
        process = self.world.machines[name].agent
        if process is None or process.phase is not Phase.RUNNING or self.world.servers[name].agent is not agent:
            return
        supervisor = agent.supervisor
        under_way, watched = supervisor._effects, supervisor._watched
        for instance in agent.scheduler.record().instances:
            kinds = EFFECTS.get(instance.state, ())
            watch = instance.state in (State.STARTING, State.READY, State.DRAINING, State.STOPPING)
            if (
                kinds
                and not any((k, instance.id) in under_way for k in kinds)
                and not (watch and instance.id in watched)
            ):
                self.world.fail(
                    "every effect is carried out",
                    f"{name}: {instance.function} {instance.id} is {instance.state} and nothing is done about it",
                )
            stops = instance.state is State.STOPPING and ("stop", instance.id) not in under_way
            worker = next((w for w in self.world.machines[name].alive() if w.instance == instance.id), None)
            if worker is not None:
                self._check_tier(name, instance, worker)
            if stops and worker is not None:
                self.world.fail("every effect is carried out", f"{name}: nothing stops {instance.id}")

    def _check_tier(self, host: str, instance: Instance, worker: Worker) -> None:
        """A worker is where the record has it: frozen, it holds nothing of a device, and ready, it runs."""
        parked = worker.asleep or worker.cuda is not CudaState.RUNNING
        if (instance.state is State.FROZEN and worker.held_mb) or (instance.state is State.READY and parked):
            self.world.fail(
                "a worker is in its tier",
                f"{host}: {instance.function} {instance.id} is {instance.state}; it is {worker.cuda} and holds"
                f" {worker.held_mb} MB",
            )

    def at_rest(self) -> bool:
        """Whether nothing moves any more and everybody knows it."""
        self._restless = self._why_restless()
        return not self._restless

    def _why_restless(self) -> str:
        world = self.world
        if world.open:
            return f"{len(world.open)} requests are open: {dict(list(world.open.items())[:3])}"
        for name, machine in world.machines.items():
            agent = world.agents.get(name)
            if machine.agent is None or machine.agent.phase is Phase.DEAD or agent is None:
                return f"the agent of {name} is down"
            instances = agent.scheduler.record().instances
            if moving := [f"{i.id} {i.function} {i.state} {i.why}" for i in instances if not _is_settled(i)]:
                return f"{name}: {', '.join(moving)}"
            ids = {i.id for i in instances}
            if orphans := [w.instance for w in machine.alive() if w.instance not in ids]:
                return f"{name} runs orphans: {orphans}"
            if lost := ids - {w.instance for w in machine.alive()}:
                return f"{name} lists instances without a process: {sorted(lost)}"
        for name, slot in world.routers.items():
            if slot.process is None or slot.process.phase is Phase.DEAD or slot.router is None:
                return f"router {name} is down"
            view = slot.router.view
            if view.away or view.fleet.silent:
                return f"router {name}: away {view.away}, silent {sorted(view.fleet.silent)}"
            if dead := view.fleet.routers.keys() - {s.router.id for s in world.routers.values() if s.router}:
                return f"router {name} counts the reports of routers that ended: {sorted(dead)}"
            for host, agent in world.agents.items():
                own = {(i.id, i.state) for i in agent.scheduler.record().instances}
                reading = view.fleet.hosts.get(host)
                if reading is None or {(i.id, i.state) for i in reading.instances} != own:
                    return f"router {name} has another view of {host}"
        return self._why_numbers_are_wrong()

    def _why_numbers_are_wrong(self) -> str:
        """`min` holds where there is free room, and `max` holds."""
        world = self.world
        records = [a.scheduler.record() for a in world.agents.values()]
        slot = next(iter(world.routers.values()))
        assert slot.router is not None
        fleet = slot.router.view.fleet
        for function in world.catalogue.functions.values():
            ready = [i for r in records for i in r.instances if i.function == function.id and i.state is State.READY]
            if len(ready) > max(function.max, function.min):
                return f"{len(ready)} instances of {function.id}, whose max is {function.max}"
            if len(ready) < function.min and not any(f.function == function.id for r in records for f in r.failures):
                wants = need(function, None)
                free = [
                    r.name
                    for r in records
                    if not isinstance(p := place(wants, r, use(fleet), 0.0), NoRoom) and not p.evict
                ]
                if free:
                    return f"{len(ready)} instances of {function.id}, whose min is {function.min}; {free} have room"
        return ""

    def check_end(self) -> None:
        """Check that the fleet has come to rest."""
        if self._restless:
            self.world.fail("the fleet comes to rest", self._restless)
