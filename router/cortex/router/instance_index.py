"""The instances in a router's view, by function and by id. Pure.

An update looks only at the hosts that changed: of a thousand hosts, a claim changes one.
"""

from collections.abc import Collection, Mapping

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.platform.record import HostRecord, Instance
from cortex.router.model_traits import known_models


class InstanceIndex:
    """The instances of all hosts in the last records, silent hosts too."""

    def __init__(self) -> None:
        self.profiles: Mapping[str, ModelProfile] = {}
        """Each function's model profile, from the first host by name that has one."""
        self._records: dict[str, HostRecord] = {}
        self._placed: dict[str, tuple[str, str]] = {}
        self._of: dict[str, dict[str, tuple[Instance, ...]]] = {}
        self._ready: dict[str, dict[str, tuple[Instance, ...]]] = {}

    def update(self, records: Mapping[str, HostRecord]) -> None:
        """Take these records instead of the earlier ones."""
        before = self._records
        changed = [n for n in {**before, **records} if before.get(n) is not records.get(n)]
        if not changed:
            return
        self._records = dict(records)
        touched: set[str] = set()
        for name in changed:
            old, new = before.get(name), records.get(name)
            if old is not None and new is not None and old.instances == new.instances:
                continue
            touched.update(self._remove(name, old.instances if old else ()))
            touched.update(self._add(name, new.instances if new else ()))
        for function in touched:
            self._sort_ready(function)
        if any(_models(before.get(n)) != _models(records.get(n)) for n in changed):
            self.profiles = known_models(self._records)

    def ready(self, function: str, revision: str) -> tuple[Instance, ...]:
        """Return the ready instances of a function's revision."""
        return self._ready.get(function, {}).get(revision, ())

    def of(self, function: str) -> Mapping[str, tuple[Instance, ...]]:
        """Return the instances of a function by host, also of silent ones."""
        return self._of.get(function, {})

    def place_of(self, instance: str) -> tuple[str, str] | None:
        """Return the function and the host of an instance."""
        return self._placed.get(instance)

    def ids(self) -> Collection[str]:
        """Return the ids of all instances."""
        return self._placed.keys()

    def _remove(self, host: str, instances: Collection[Instance]) -> set[str]:
        functions = {i.function for i in instances}
        for function in functions:
            self._of[function].pop(host, None)
            if not self._of[function]:
                del self._of[function]
        for instance in instances:
            if self._placed.get(instance.id) == (instance.function, host):
                del self._placed[instance.id]
                for other, present in self.of(instance.function).items():  # a renamed host may be listed twice
                    if any(i.id == instance.id for i in present):
                        self._placed[instance.id] = (instance.function, other)
        return functions

    def _add(self, host: str, instances: Collection[Instance]) -> set[str]:
        functions = {i.function for i in instances}
        self._placed.update((i.id, (i.function, host)) for i in instances)
        for function in functions:
            self._of.setdefault(function, {})[host] = tuple(i for i in instances if i.function == function)
        return functions

    def _sort_ready(self, function: str) -> None:
        ready: dict[str, list[Instance]] = {}
        for instances in self._of.get(function, {}).values():
            for instance in instances:
                if instance.state is State.READY:
                    ready.setdefault(instance.revision, []).append(instance)
        self._ready[function] = {revision: tuple(of) for revision, of in ready.items()}
        if not ready:
            del self._ready[function]


def _models(record: HostRecord | None) -> Mapping[str, ModelProfile]:
    return record.models if record is not None else {}
