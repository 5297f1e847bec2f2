"""The index of instances: whatever changes, it is the one that is made of the records anew."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.record import HostRecord, Instance
from cortex.router.instance_index import InstanceIndex
from tests.support.factories import a_host, an_instance

FUNCTIONS, HOSTS = ("f", "g"), ("a", "b", "c")
IDS = tuple(f"{h}{n}" for h in HOSTS for n in range(3))

instances = st.builds(
    lambda function, revision, state: (function, revision, state),
    st.sampled_from(FUNCTIONS),
    st.sampled_from(("r1", "r2")),
    st.sampled_from((State.READY, State.STARTING, State.DRAINING)),
)
fleets = st.dictionaries(st.sampled_from(HOSTS), st.lists(instances, max_size=3))


def records(fleet: dict[str, list[tuple[str, str, State]]], earlier: dict[str, HostRecord]) -> dict[str, HostRecord]:
    """Return the records of a fleet; one that is as before stays the same object, as for a reader."""
    new = {}
    for host, of in fleet.items():
        listed = tuple(
            an_instance(f"{host}{n}", function=function, revision=revision, state=state)
            for n, (function, revision, state) in enumerate(of)
        )
        record = replace(a_host(*listed), name=host)
        new[host] = earlier[host] if earlier.get(host) == record else record
    return new


def contents(index: InstanceIndex) -> object:
    def ids(of: tuple[Instance, ...]) -> list[str]:
        return sorted(i.id for i in of)

    return (
        {(f, r): ids(index.ready(f, r)) for f in FUNCTIONS for r in ("r1", "r2")},
        {f: {host: ids(of) for host, of in index.of(f).items()} for f in FUNCTIONS},
        {i: index.place_of(i) for i in IDS},
        sorted(index.ids()),
    )


@given(st.lists(fleets, min_size=1, max_size=6))
def test_an_index_that_follows_changes_is_the_index_of_the_last_records(history: list[dict]) -> None:  # type: ignore[type-arg]
    index = InstanceIndex()
    present: dict[str, HostRecord] = {}
    for fleet in history:
        present = records(fleet, present)
        index.update(present)

    anew = InstanceIndex()
    anew.update(present)
    assert contents(index) == contents(anew)


def test_an_instance_that_two_records_list_stays_while_one_of_them_does() -> None:
    """A renamed host is in the record under both names until the old one expires."""
    index, instance = InstanceIndex(), an_instance("one", function="f")
    old, new = replace(a_host(instance), name="a"), replace(a_host(instance), name="b")

    index.update({"a": old, "b": new})
    index.update({"a": replace(old, instances=(replace(instance, pid=7),)), "b": new})
    index.update({"b": new})

    assert index.place_of("one") == ("f", "b")
