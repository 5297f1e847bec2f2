"""Ownership of a host name: what an agent does with a record under its name when it starts."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.platform.agent.host_name import NameTaken, check_name, home, name_taken
from cortex.platform.record import HostRecord
from tests.support.factories import HOST, a_host

OTHER = replace(a_host(), agent="agent-2", home="h2", sequence=5, version="1.2.3", started=1_700_000_000)


class Pages:
    """A record that reads as one page after the other; the last page repeats. It expires soon."""

    def __init__(self, *pages: HostRecord | None) -> None:
        self._pages: Iterator[HostRecord | None] = itertools.chain(pages, itertools.repeat(pages[-1]))

    async def host(self, name: str, now: float) -> HostRecord | None:
        return next(self._pages)

    async def host_left_s(self, name: str) -> float:
        return 0.05


async def check(*pages: HostRecord | None) -> None:
    await check_name(Pages(*pages), HOST, "h1", look_s=0.001)


@pytest.mark.parametrize(
    "present",
    [None, replace(OTHER, home="h1"), replace(OTHER, home="")],
    ids=["none", "of this home", "of a release without homes"],
)
async def test_a_name_without_another_home_is_free_at_once(present: HostRecord | None) -> None:
    await check(present, replace(OTHER, sequence=6))


async def test_a_name_is_taken_while_another_agent_publishes() -> None:
    with pytest.raises(NameTaken) as refused:
        await check(OTHER, OTHER, replace(OTHER, sequence=6))

    assert refused.value.holder.sequence == 6


async def test_a_name_is_free_after_the_other_record_expires() -> None:
    await check(OTHER, OTHER, None, replace(OTHER, sequence=6))


async def test_a_name_is_free_if_its_record_is_not_published_again() -> None:
    await check(OTHER)


def test_the_error_has_address_version_and_start_of_the_other_machine() -> None:
    sentence = name_taken(OTHER)

    assert sentence.startswith(f"another machine has the host name '{HOST}' since 2023-11-14 22:13:20 UTC")
    assert sentence.endswith("http://host-a:13131, version 1.2.3")


def test_a_home_depends_on_the_boot_and_the_state_directory(tmp_path: Path) -> None:
    one, two = home(tmp_path / "one", "boot-1"), home(tmp_path / "two", "boot-1")

    assert one == home(tmp_path / "one", "boot-1")
    assert len({one, two, home(tmp_path / "one", "boot-2")}) == 3


def test_a_recreated_directory_is_another_home(tmp_path: Path) -> None:
    first = home(tmp_path / "state", "boot-1")
    (tmp_path / "state").rename(tmp_path / "first")  # as in two containers of one machine

    assert home(tmp_path / "state", "boot-1") != first
