"""The table of keys in memory: it follows the record, and stands while there is none."""

from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from cortex.platform.api_keys import LOCAL, ApiKey, digest
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.access.keyring import KeyRing, local_key

ONE = ApiKey(digest=digest("one"), id="1", name="one")


class Record:
    """A record that holds these keys; None: it is away."""

    def __init__(self, *held: ApiKey) -> None:
        self.held: tuple[ApiKey, ...] | None = held

    async def keys(self) -> list[ApiKey]:
        if self.held is None:
            raise RecordUnavailable("away")
        return list(self.held)


def ring(record: Record, local: str = "") -> KeyRing:
    return KeyRing(cast(Registry, record), local)


async def test_keys_that_were_read_open_while_the_record_is_away() -> None:
    record = Record(ONE)
    keys = ring(record)
    await keys.refresh()
    record.held = None

    with pytest.raises(RecordUnavailable):
        await keys.refresh()

    found = keys.find("one")
    assert found is not None
    assert found.name == "one"
    assert keys.find("two") is None


async def test_a_record_that_comes_back_empty_opens_nothing_to_nobody() -> None:
    record = Record(ONE)
    keys = ring(record)
    await keys.refresh()
    record.held = ()

    await keys.refresh()

    assert keys.find("one") is None
    assert keys.any_made  # so that nobody comes in without one either


async def test_before_the_record_was_read_only_this_machines_own_key_opens() -> None:
    keys = ring(Record(), "mine")

    assert not keys.known
    assert keys.find("mine") == LOCAL
    assert keys.find("one") is None


async def test_a_key_ends_when_its_time_is_up_without_the_record() -> None:
    keys = ring(Record(replace(ONE, expires=1.0)))
    await keys.refresh()

    assert keys.find("one") is None


def test_a_local_key_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" mine\n")

    assert [local_key(str(tmp_path / n)) if n else local_key("") for n in ("key", "none", "")] == ["mine", "", ""]
