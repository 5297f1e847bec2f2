"""Keys between processes are derived and never sent; the token file can be rotated."""

import threading
from pathlib import Path

import pytest

from cortex.platform import keys
from cortex.platform.keys import FleetToken, fleet_token, host_token, same, worker_key
from cortex.platform.settings import SettingsError


def test_a_worker_key_is_deterministic() -> None:
    # Agents of two versions may share a fleet: the derivation is part of the protocol.
    assert worker_key("token", "one") == "4aa759f3c35bfe8abffd1edb5513675234cd51fc2483ae78eca8efd55a09a239"


def test_keys_differ_by_instance_and_by_fleet() -> None:
    keys = {worker_key(token, instance) for token in ("t", "u") for instance in ("one", "two")}

    assert len(keys) == 4


def test_a_worker_key_does_not_contain_the_token() -> None:
    assert "token" not in worker_key("token", "one")


@pytest.mark.parametrize(
    ("given", "expected", "equal"),
    [("a", "a", True), ("a", "b", False), ("", "a", False), ("a", "ab", False), ("é", "é", True)],
)
def test_only_equal_secrets_are_the_same(given: str, expected: str, equal: bool) -> None:
    assert same(given, expected) is equal


def test_a_token_is_created_once_and_then_read(tmp_path: Path) -> None:
    path = tmp_path / "state" / "fleet.token"

    first, second = fleet_token(path), fleet_token(path)

    assert first == second
    assert len(first) >= 43


def test_the_token_file_is_private_and_the_only_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.token"

    fleet_token(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["fleet.token"]


def test_a_token_written_by_an_operator_is_used(tmp_path: Path) -> None:
    path = tmp_path / "fleet.token"
    path.write_text("  of the operator\n")

    assert fleet_token(path) == "of the operator"


def test_an_empty_token_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fleet.token"
    path.write_text("\n")

    with pytest.raises(SettingsError, match="is empty"):
        fleet_token(path)


def test_during_a_rotation_both_tokens_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", -1.0)
    path = tmp_path / "fleet.token"
    path.write_text("old\n")
    token = FleetToken(path)
    seen = []

    for step in ("old\n", "old\nnew\n", "new\nold\n", "new\n"):
        path.write_text(step)
        seen.append((token.current, token.opens("old", "a", "http://a"), token.opens("new", "a", "http://a")))

    assert seen == [("old", True, False), ("old", True, True), ("new", True, True), ("new", False, True)]
    assert token.worker_keys("one") == [worker_key("new", "one")]


def test_a_hosts_token_is_valid_for_its_name_and_address_only(tmp_path: Path) -> None:
    path = tmp_path / "fleet.token"
    path.write_text("new\nold\n")
    token = FleetToken(path)

    sent = token.for_host("a", "http://a:1")

    assert sent == host_token("new", "a", "http://a:1")
    assert "new" not in sent
    assert token.opens(sent, "a", "http://a:1")
    assert token.opens(host_token("old", "a", "http://a:1"), "a", "http://a:1")
    assert not token.opens(sent, "b", "http://a:1")
    assert not token.opens(sent, "a", "http://forged:1")
    assert not token.opens(host_token("another fleet's", "a", "http://a:1"), "a", "http://a:1")


def test_an_incomplete_or_missing_token_file_keeps_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", -1.0)
    path = tmp_path / "fleet.token"
    path.write_text("old\n")
    token = FleetToken(path)

    path.write_text("\n")
    empty = token.current
    path.unlink()

    assert (empty, token.current) == ("old", "old")
    assert not token.opens("", "a", "http://a")


def test_concurrent_processes_create_one_token(tmp_path: Path) -> None:
    path, found, gate = tmp_path / "fleet.token", [], threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        found.append(fleet_token(path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [found[0]] * 8
