"""The keys that open what an engine does for its agent alone."""

import os
from pathlib import Path

import pytest

from cortex.platform.workers.control_keys import FILE, ControlKeys


def test_each_instance_has_a_key_that_the_next_agent_derives_too(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    keys = ControlKeys(state_dir)

    one, two = keys.key("one"), keys.key("two")

    assert one != two
    assert ControlKeys(state_dir).key("one") == one
    assert ControlKeys(tmp_path / "other").key("one") != one
    assert (state_dir / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state_dir.iterdir()] == [FILE]


@pytest.mark.parametrize("content", [b"", b"\n", b"a" * 31 + b"\n"])
def test_a_short_secret_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)

    with pytest.raises(OSError, match=f"{path} has {len(content.strip())} bytes.*at least 32"):
        ControlKeys(tmp_path).key("one")

    assert path.read_bytes() == content


def test_a_secret_that_cannot_be_stored_is_not_used_and_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ControlKeys(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", full)
        keys.key("one")

    assert not (tmp_path / FILE).exists()
    assert keys.key("one") == ControlKeys(tmp_path).key("one")
