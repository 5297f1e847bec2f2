"""Keys between processes are derived and never sent; the token file can be rotated."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform import keys
from cortex.platform.keys import (
    FleetToken,
    HostToken,
    agent_token,
    fleet_mark,
    fleet_token,
    host_file,
    host_secrets,
    host_token,
    neighbour_token,
    same,
    worker_key,
)
from cortex.platform.settings import SettingsError

ADDRESS = "http://10.0.0.2:13131"


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.token"
    path.write_text("fleet-secret\n")
    return path


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    """The token file of host `a`."""
    path = tmp_path / "host.token"
    path.write_text(host_file(("fleet-secret",), "a"))
    return path


def test_a_neighbours_token_opens_offers_at_this_address_only(fleet_file: Path, own_file: Path) -> None:
    bearer = FleetToken(fleet_file).for_neighbours("a", ADDRESS)
    own = HostToken.own(own_file, "a")

    assert own.opens_offers(bearer, ADDRESS)
    assert not own.opens(bearer, ADDRESS)
    assert not own.opens_offers(bearer, "http://elsewhere:1")
    assert not own.opens_offers(FleetToken(fleet_file).for_neighbours("b", ADDRESS), ADDRESS)
    assert not own.opens_offers("", ADDRESS)


def test_a_host_proves_to_one_other_what_it_says(fleet_file: Path, own_file: Path) -> None:
    seal = FleetToken(fleet_file).seal_between("a", "b")
    own = HostToken.own(own_file, "a")

    assert own.proofs("b", "text") == (keys.proof(seal, "text"),)
    assert own.proofs("c", "text") != own.proofs("b", "text") != own.proofs("b", "another")


def test_derivations_do_not_change_between_releases() -> None:
    # Routers and agents of two releases may share a fleet, and workers outlive an upgrade.
    own = host_token("token", "a")

    assert own == "a4c9a1d9dde6fc2d21118cc3411ca11c3d28d659da13c048932028b3198a4a19"
    assert agent_token(own, ADDRESS) == "aa99d5e5608a7a8308a8852ed379435d4a7dd7571fcb9dd5f89fdead565824c2"
    assert worker_key(own, "one") == "afb7627a2c4fc915d5ebf29a8c97da4bcb03e49c6a04bcf7b9a0dd68a862eb32"
    assert neighbour_token(own, ADDRESS) == "7ab304a40d2eb2f81e32cc2dc1da1644518d2d87c3a74626c5b9167690e593e3"
    assert fleet_mark("token") == "d7b77f22d444dd609a2be9f8d8798224d92220beb70e009844e6e69dcd2fde36"


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9)), min_size=2, unique=True))
def test_no_two_fleets_hosts_or_instances_share_a_key(triples: list[tuple[str, str, str]]) -> None:
    derivations = (worker_key, agent_token, neighbour_token)
    derived = {derive(host_token(token, host), rest) for token, host, rest in triples for derive in derivations}

    assert len(derived) == len(derivations) * len(triples)


@pytest.mark.parametrize("own", [True, False], ids=["its own file", "the fleet's file"])
def test_a_router_and_an_agent_derive_the_same_keys(own: bool, fleet_file: Path, own_file: Path) -> None:
    router = FleetToken(fleet_file)

    agent = HostToken.own(own_file, "a") if own else HostToken.of_fleet(fleet_file, "a")

    assert agent.opens(router.for_agent("a", ADDRESS), ADDRESS)
    assert [agent.worker_key("one")] == agent.worker_keys("one") == router.worker_keys(["a"], "one")
    assert agent.fleet_marks() == router.fleet_marks()


def test_what_a_router_sends_opens_that_host_at_that_address_alone(fleet_file: Path) -> None:
    sent = FleetToken(fleet_file).for_agent("a", ADDRESS)

    opened = {
        (host, address): HostToken.of_fleet(fleet_file, host).opens(sent, address)
        for host in ("a", "b")
        for address in (ADDRESS, "http://forged:1")
    }

    assert [place for place, opens in opened.items() if opens] == [("a", ADDRESS)]


def test_with_a_hosts_file_no_key_of_another_host_can_be_derived(fleet_file: Path, own_file: Path) -> None:
    (stolen,) = host_secrets(own_file, "a")
    other = HostToken.of_fleet(fleet_file, "b")

    secrets = [stolen.token, stolen.mark, own_file.read_text().strip()]
    secrets += [host_token(secret, "b") for secret in secrets]
    bearers = [*secrets, *(agent_token(secret, ADDRESS) for secret in secrets)]

    assert "fleet-secret" not in own_file.read_text()
    assert [bearer for bearer in bearers if other.opens(bearer, ADDRESS)] == []
    assert other.worker_key("one") not in {worker_key(secret, "one") for secret in secrets}


@pytest.mark.parametrize("bearer", ["fleet-secret", agent_token(host_token("fleet-secret", "a"), ADDRESS)])
def test_an_agent_with_its_hosts_token_takes_the_fleet_token_and_its_own_bearer_token(
    bearer: str, own_file: Path
) -> None:
    assert HostToken.own(own_file, "a").opens(bearer, ADDRESS)


@pytest.mark.parametrize("bearer", ["", "wrong", host_token("fleet-secret", "a"), fleet_mark("fleet-secret")])
def test_an_agent_with_its_hosts_token_takes_nothing_else(bearer: str, own_file: Path) -> None:
    assert not HostToken.own(own_file, "a").opens(bearer, ADDRESS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (host_file(("fleet",), "b"), "is the token of host 'b', and this is host 'a'"),
        (host_file(("fleet",), "a") + host_file(("next",), "b"), "is the token of host 'b', and this is host 'a'"),
        ("a-fleet-token\n", "line 1 is not the token of a host"),
        (host_file(("fleet",), "a")[:-9], "line 1 is not the token of a host"),
        ("\n", "is empty"),
    ],
)
def test_a_file_that_is_not_this_hosts_token_is_refused_with_the_command_that_makes_one(
    content: str, reason: str, own_file: Path
) -> None:
    own_file.write_text(content)

    with pytest.raises(SettingsError) as refused:
        HostToken.own(own_file, "a")

    assert reason in str(refused.value)
    assert str(refused.value).endswith("`cortex host token a` on a machine with the fleet token makes one")
    assert "a-fleet-token" not in str(refused.value)


def test_a_hosts_token_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "host.token"

    with pytest.raises(SettingsError, match="cannot be read: No such file or directory; `cortex host token a`"):
        HostToken.own(path, "a")

    assert not path.exists()


def test_a_hosts_token_is_no_fleet_token(own_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"is the token of a host, not the fleet token.*`\[agent\] token_file`"):
        FleetToken(own_file)


@pytest.mark.parametrize("name", ["gpu:1", "a b", "ä", "cortex-host:x"])
def test_a_host_may_have_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "host.token"
    path.write_text(host_file(("fleet",), name))

    assert HostToken.own(path, name).worker_key("one") == worker_key(host_token("fleet", name), "one")


@pytest.mark.parametrize(
    ("secret", "expected", "equal"),
    [("a", "a", True), ("a", "b", False), ("", "a", False), ("a", "ab", False), ("é", "é", True)],
)
def test_only_equal_secrets_are_the_same(secret: str, expected: str, equal: bool) -> None:
    assert same(secret, expected) is equal


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


@pytest.mark.parametrize("own", [True, False], ids=["its own file", "the fleet's file"])
def test_a_token_is_changed_in_three_steps_and_both_are_accepted_in_between(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_S", -1.0)
    path = tmp_path / "token"
    key = {fleet: worker_key(host_token(fleet, "a"), "one") for fleet in ("old", "new")}
    readings: list[tuple[bool, bool, bool]] = []
    token: HostToken | None = None

    for step in (("old",), ("old", "new"), ("new", "old"), ("new",)):
        path.write_text(host_file(step, "a") if own else "\n".join(step))
        token = token or (HostToken.own(path, "a") if own else HostToken.of_fleet(path, "a"))
        readings.append(
            (token.worker_key("one") == key["new"], token.opens("old", ADDRESS), token.opens("new", ADDRESS))
        )

    assert readings == [(False, True, False), (False, True, True), (True, True, True), (True, False, True)]
    assert token is not None
    assert token.worker_keys("one") == [key["new"]]


def test_a_router_uses_the_first_token_and_has_the_keys_of_workers_under_the_others(tmp_path: Path) -> None:
    path = tmp_path / "fleet.token"
    path.write_text("new\nold\n")
    token = FleetToken(path)

    assert token.for_agent("a", ADDRESS) == agent_token(host_token("new", "a"), ADDRESS)
    assert token.worker_keys(["a"], "one") == [worker_key(host_token(t, "a"), "one") for t in ("new", "old")]


def test_an_incomplete_or_missing_token_file_keeps_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", -1.0)
    path = tmp_path / "fleet.token"
    path.write_text("old\n")
    token, of_host = FleetToken(path), HostToken.of_fleet(path, "a")

    path.write_text("\n")
    empty = token.current
    path.unlink()

    assert (empty, token.current) == ("old", "old")
    assert of_host.opens("old", ADDRESS)
    assert not of_host.opens("", ADDRESS)


def test_concurrent_processes_create_one_token(tmp_path: Path) -> None:
    path, result, gate = tmp_path / "fleet.token", [], threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        result.append(fleet_token(path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert result == [result[0]] * 8


def test_workers_of_an_earlier_name_have_a_key_of_that_name(fleet_file: Path, own_file: Path) -> None:
    renamed, own = HostToken.of_fleet(fleet_file, "b"), HostToken.own(own_file, "a")

    renamed.accept_former("a")
    own.accept_former("c")

    assert renamed.worker_keys("one") == [
        HostToken.of_fleet(fleet_file, "b").worker_key("one"),
        HostToken.of_fleet(fleet_file, "a").worker_key("one"),
    ]
    assert renamed.worker_key("one") == HostToken.of_fleet(fleet_file, "b").worker_key("one")
    assert own.worker_keys("one") == [own.worker_key("one")]  # a file of one host knows no other name
