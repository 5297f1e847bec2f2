"""The rows of `/admin/functions`: each has what concerns its function, however many there are."""

import time

from msgspec.structs import replace

from cortex.functions.spec import Function
from cortex.platform.record import Fleet, Instance, SilentHost
from cortex.router.routes.admin import rows
from tests.support.factories import a_function, a_host, an_instance


def test_a_row_has_the_instances_of_its_function_on_every_host_alive_or_silent() -> None:
    functions = [a_function(f"f/{n}") for n in range(3)]
    one = a_host(an_instance("a", function="f/0"), an_instance("b", function="f/1"))
    two = replace(a_host(an_instance("c", function="f/0")), name="two", unreadable={"f/2": "no such file"})
    silent = SilentHost(record=replace(a_host(an_instance("d", function="f/1")), name="three"), since=1.0)
    fleet = Fleet(hosts={one.name: one, "two": two}, silent={"three": silent}, at=2.0)

    listed = rows(functions, {"f/0": ["alias"]}, fleet, {}, 2.0)

    assert [(row.id, [i.id for i in row.instances]) for row in listed] == [
        ("f/0", ["a", "c"]),
        ("f/1", ["b", "d"]),
        ("f/2", []),
    ]
    assert (listed[0].aliases, listed[2].failure) == (["alias"], "two: no such file")


def test_two_thousand_functions_with_an_instance_each_are_rows_in_a_fraction_of_a_second() -> None:
    functions: list[Function] = [a_function(f"f/{n}") for n in range(2000)]
    instances: list[Instance] = [an_instance(f"i{n}", function=f"f/{n}") for n in range(2000)]
    hosts = {f"h{h}": replace(a_host(*instances[h * 100 : h * 100 + 100]), name=f"h{h}") for h in range(20)}
    began = time.process_time()

    listed = rows(functions, {}, Fleet(hosts=hosts, at=1.0), {}, 1.0)

    assert sum(len(row.instances) for row in listed) == 2000
    assert time.process_time() - began < 1.0
