"""The keys that open what an engine does for its agent alone."""

from pathlib import Path

from cortex.platform.workers.control_keys import FILE, ControlKeys


def test_each_instance_has_a_key_that_the_next_agent_derives_too(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    keys = ControlKeys(state_dir)

    one, two = keys.key("one"), keys.key("two")

    assert one != two
    assert ControlKeys(state_dir).key("one") == one
    assert ControlKeys(tmp_path / "other").key("one") != one
    assert (state_dir / FILE).stat().st_mode & 0o777 == 0o600
