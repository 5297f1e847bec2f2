"""Rotation of the fleet's token, which may be interrupted after each step."""

from collections.abc import Callable
from pathlib import Path

import pytest
from deploy import rotation, vault
from deploy.vault import Vault, value, with_values

PLAIN = "---\n# ours\ncortex_fleet_token: old\nother: x\n"


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory with a vault that is not encrypted, since Ansible's encryption is slow."""

    def plain(verb: str, *arguments: str, stdin: str = "") -> str:
        return Path(arguments[0]).read_text() if verb == "view" else stdin

    monkeypatch.setattr(vault, "_vault", plain)
    hosts = tmp_path / "hosts.yml"
    path = Vault(hosts).path
    path.parent.mkdir(parents=True)
    path.write_text(PLAIN)
    return hosts


def play_noting(inventory: Path, into: list[list[str]], fails: int = -1) -> Callable[..., int]:
    """Return a `play` that notes the tokens in machines' files. The run numbered `fails` fails."""

    def play(_playbook: str, *arguments: str) -> int:
        text = Vault(inventory).read()
        if not arguments:
            names = (rotation.TOKEN, rotation.NEXT, rotation.FORMER)
            into.append([token for name in names if (token := value(text, name))])
        return 1 if len(into) == fails else 0

    return play


def test_a_new_token_is_accepted_everywhere_before_it_is_used(inventory: Path) -> None:
    files: list[list[str]] = []

    assert rotation.rotate(inventory, play_noting(inventory, files)) == 0
    assert rotation.finish(inventory, play_noting(inventory, files)) == 0

    new = files[0][1]
    assert files == [["old", new], [new, "old"], [new]]
    assert Vault(inventory).read() == PLAIN.replace("old", new)


@pytest.mark.parametrize("fails", [1, 2])
def test_an_interrupted_rotation_continues_with_the_same_token(inventory: Path, fails: int) -> None:
    files: list[list[str]] = []

    assert rotation.rotate(inventory, play_noting(inventory, files, fails)) == 1
    assert rotation.rotate(inventory, play_noting(inventory, files)) == 0

    assert len({token for file in files for token in file}) == 2
    assert files[-1][1] == "old"


def test_an_interrupted_removal_of_the_old_token_continues(inventory: Path) -> None:
    files: list[list[str]] = []
    rotation.rotate(inventory, play_noting(inventory, files))

    assert rotation.finish(inventory, play_noting(inventory, files, fails=3)) == 1
    assert rotation.finish(inventory, play_noting(inventory, files)) == 0

    new = files[1][0]
    assert files[2:] == [[new], [new]]


def test_the_old_token_is_not_removed_before_all_machines_accept_the_new_one(inventory: Path) -> None:
    files: list[list[str]] = []
    rotation.rotate(inventory, play_noting(inventory, files, fails=1))

    assert rotation.finish(inventory, play_noting(inventory, files)) == 1

    assert len(files) == 1


def test_the_old_token_stays_while_a_worker_started_under_it_runs(inventory: Path) -> None:
    files: list[list[str]] = []
    rotation.rotate(inventory, play_noting(inventory, files))

    assert rotation.finish(inventory, lambda *arguments: 2) == 2

    assert value(Vault(inventory).read(), rotation.FORMER) == "old"


def test_with_values_changes_nothing_else_in_a_vault() -> None:
    text = with_values(PLAIN, {"cortex_fleet_token": "new", "more": "y", "absent": ""})

    assert text == "---\n# ours\ncortex_fleet_token: new\nother: x\nmore: y\n"
    assert with_values(text, {"more": ""}) == PLAIN.replace("old", "new")
