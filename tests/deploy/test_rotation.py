"""A fleet's token is changed in steps of which every one may be the last."""

from collections.abc import Callable
from pathlib import Path

import pytest
from deploy import rotation, vault
from deploy.vault import Vault, changed, value

PLAIN = "---\n# ours\ncortex_fleet_token: old\nother: x\n"


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory with a vault whose text is not sealed: sealing is Ansible's, and slow."""

    def unsealed(verb: str, *arguments: str, said: str = "") -> str:
        return Path(arguments[0]).read_text() if verb == "view" else said

    monkeypatch.setattr(vault, "_vault", unsealed)
    found = tmp_path / "hosts.yml"
    sealed = Vault(found)
    sealed.path.parent.mkdir(parents=True)
    sealed.path.write_text(PLAIN)
    return found


def told(inventory: Path, into: list[list[str]], fails: int = -1) -> Callable[..., int]:
    """A play that notes which tokens machines would have in their files; the one numbered `fails` fails."""

    def play(_playbook: str, *arguments: str) -> int:
        text = Vault(inventory).read()
        if not arguments:
            names = (rotation.TOKEN, rotation.NEXT, rotation.FORMER)
            into.append([found for name in names if (found := value(text, name))])
        return 1 if len(into) == fails else 0

    return play


def test_a_new_token_is_accepted_everywhere_before_it_is_used_anywhere(inventory: Path) -> None:
    files: list[list[str]] = []

    assert rotation.rotate(inventory, told(inventory, files)) == 0
    assert rotation.finish(inventory, told(inventory, files)) == 0

    new = files[0][1]
    assert files == [["old", new], [new, "old"], [new]]
    assert Vault(inventory).read() == PLAIN.replace("old", new)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_change_that_was_interrupted_goes_on_with_the_same_token(inventory: Path, fails: int) -> None:
    files: list[list[str]] = []

    assert rotation.rotate(inventory, told(inventory, files, fails)) == 1
    assert rotation.rotate(inventory, told(inventory, files)) == 0

    assert len({token for file in files for token in file}) == 2
    assert files[-1][1] == "old"


def test_the_old_token_stays_while_something_runs_that_was_started_under_it(inventory: Path) -> None:
    files: list[list[str]] = []
    rotation.rotate(inventory, told(inventory, files))

    assert rotation.finish(inventory, lambda *arguments: 2) == 2

    assert value(Vault(inventory).read(), rotation.FORMER) == "old"


def test_nothing_else_in_a_vault_is_touched() -> None:
    text = changed(PLAIN, {"cortex_fleet_token": "new", "more": "y", "absent": ""})

    assert text == "---\n# ours\ncortex_fleet_token: new\nother: x\nmore: y\n"
    assert changed(text, {"more": ""}) == PLAIN.replace("old", "new")
