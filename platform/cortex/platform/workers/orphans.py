"""Orphans: what runs of an agent's workers that no agent knows. Light to import: `cortex up` ends with it."""

from collections.abc import Collection
from pathlib import Path

from cortex.platform.record import ProcessId
from cortex.platform.workers import cgroup, process


def kill_unknown(owner: str, groups: Path | None, instances: Collection[str] = ()) -> dict[str, list[int]]:
    """KILL what runs of an agent's workers, except of these instances. Return the processes of each instance.

    (1) the processes with the agent's mark;
    (2) those in a session that one of them leads, or that write to the same log: children of an engine may have
        overwritten their environment;
    (3) those in the agent's control groups.
    """
    owned: dict[str, set[ProcessId]] = {}
    logs: dict[str, str] = {}
    for instance, worker in process.find_owned(owner):  # (1), (2)
        if instance not in instances:
            owned.setdefault(instance, set()).update(process.session_of(worker))
            logs[instance] = logs.get(instance) or process.log_of(worker.pid, instance)
    killed = {i: [p.pid for p in process.kill_orphans(i, proved, logs[i])] for i, proved in owned.items()}
    for instance in cgroup.instances(groups):  # (3)
        if instance not in instances:
            members = cgroup.members(groups, instance)
            cgroup.kill(groups, instance)
            if members:
                killed[instance] = sorted({*killed.get(instance, ()), *members})
    return killed
