"""Jinja filters that decide about the fleet: which machines are listed twice, and what still needs the old token."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def cortex_first(machines: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return every machine's value of the first of these variables that it has."""
    return [next(str(machine[n]) for n in names if n in machine) for machine in machines]


def cortex_shared(machines: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return the values that more than one machine has, as `NAME VALUE`; `names` as for `cortex_first`."""
    counts = Counter(cortex_first(machines, names))
    return sorted(f"{names[0]} {value}" for value, count in counts.items() if count > 1)


def cortex_token_holders(
    seen: Mapping[str, Any], health: Mapping[str, Any], agents: Iterable[str], since: str
) -> list[str]:
    """Return the reasons to keep the old token. The router's hosts, its health, the inventory's hosts, and the Unix
    time since when all machines use the new token ("" while some may not)."""
    if not since:
        return ["not every machine uses the new token yet: run `just rotate-token INVENTORY` again"]
    if (record := health.get("record", "ok")) != "ok":
        return [f"the router does not know what runs, its record is '{record}': start Redis (cortex-redis.service)"]
    hosts: list[Mapping[str, Any]] = [*seen.get("hosts", ())]
    reporting = {host["name"] for host in hosts}
    away = {*agents, *(host["name"] for host in seen.get("silent", ()))} - reporting
    older = {i["function"] for host in hosts for i in host["instances"] if i["created"] < float(since)}
    return [
        *(
            f"host {name} does not report, its workers may still run: start its agent, or take it out of the inventory"
            for name in sorted(away)
        ),
        *(
            f"{function} was started under the old token: `cortex fn cool {function}`, or wait until it is idle"
            for function in sorted(older)
        ),
    ]


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {
            "cortex_first": cortex_first,
            "cortex_shared": cortex_shared,
            "cortex_token_holders": cortex_token_holders,
        }
