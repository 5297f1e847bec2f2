"""The folder with saved conversations: nothing half written is ever used."""

import os
from pathlib import Path

import pytest

from cortex.platform.contexts.folder import Damaged, Folder, WorkerSettings, parts_of
from cortex.platform.record import SavedContext
from tests.support.factories import a_saved_context

CONTENT = b"state " * 1000
ONE, TWO = "0" * 16, "1" * 16


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    new = Folder(tmp_path / "contexts")
    new.open_for("i1", WorkerSettings(weights="/m.gguf", settings="s1"), None)
    return new


def write(folder: Folder, id: str, content: bytes = CONTENT) -> None:
    """Write a file as a worker does."""
    (folder.slots_of("i1") / f"{id}.state").write_bytes(content)


def save(folder: Folder, id: str = ONE) -> SavedContext:
    """Save a conversation."""
    write(folder, id)
    folder.take_in("i1", id, len(CONTENT))
    return folder.finish(a_saved_context(id=id))


def test_a_saved_conversation_is_private_and_has_the_digest_of_its_content(folder: Folder) -> None:
    context = save(folder)

    assert folder.all() == [context]
    assert (context.size, len(context.digest)) == (len(CONTENT), 64)
    assert folder.state_path(ONE).stat().st_mode & 0o777 == 0o600
    assert {p.stat().st_mode & 0o777 for p in (folder.slots_of("i1"), folder.path / "saved")} == {0o700}
    assert not list(folder.slots_of("i1").iterdir())


def test_a_conversation_is_handed_out_once_and_whole(folder: Folder) -> None:
    context = save(folder)

    folder.hand_out(context, "i1", None)

    assert (folder.slots_of("i1") / f"{ONE}.state").read_bytes() == CONTENT
    assert folder.all() == []
    with pytest.raises(OSError):
        folder.hand_out(context, "i1", None)


@pytest.mark.parametrize("damaged", [CONTENT[:-1], CONTENT + b"x", b"x" + CONTENT[1:], b""])
def test_a_file_that_is_cut_or_changed_is_not_handed_out_and_removed(folder: Folder, damaged: bytes) -> None:
    context = save(folder)
    folder.state_path(ONE).write_bytes(damaged)

    with pytest.raises(Damaged):
        folder.hand_out(context, "i1", None)

    assert not folder.state_path(ONE).exists()
    assert not list(folder.slots_of("i1").iterdir())
    assert folder.all() == []


def test_a_worker_cannot_hand_in_a_link_a_folder_or_another_size(folder: Folder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    place = folder.slots_of("i1") / f"{ONE}.state"

    def refused() -> bool:
        with pytest.raises(OSError):
            folder.take_in("i1", ONE, len(CONTENT))
        return not folder.state_path(ONE).exists() and secret.read_bytes() == CONTENT

    place.symlink_to(secret)
    assert refused()
    place.unlink()
    os.link(secret, place)
    assert refused()
    place.unlink()
    place.mkdir()
    assert refused()
    place.rmdir()
    place.write_bytes(CONTENT[:-1])
    assert refused()


def test_what_a_killed_agent_left_at_any_step_is_removed_and_never_listed(folder: Folder) -> None:
    whole, saved = save(folder, TWO), folder.path / "saved"
    write(folder, ONE)
    folder.take_in("i1", ONE, len(CONTENT))  # killed before the manifest
    (saved / f"{ONE}.json.new").write_bytes(b"{}")  # while it was written
    (saved / f"{'2' * 16}.json").write_bytes((saved / f"{TWO}.json").read_bytes())  # another's manifest
    (saved / f"{'3' * 16}.json").write_bytes(b"{ broken")
    folder.open_for("i2", WorkerSettings(weights="", settings=""), None)
    before = folder.all()

    write(folder, "5" * 16)  # in the folder of a worker that runs on
    folder.sweep(["i1"])

    assert not list(folder.slots_of("i1").iterdir())
    assert before == folder.all() == [whole]
    assert {p.name for p in saved.iterdir()} == {f"{TWO}.json", f"{TWO}.state"}
    assert folder.slots_of("i1").exists() and not folder.slots_of("i2").exists()
    assert (folder.settings_of("i1"), folder.settings_of("i2")) == (
        WorkerSettings(weights="/m.gguf", settings="s1"),
        None,
    )


def test_a_conversation_that_was_read_for_another_host_is_gone_and_one_half_read_stays(folder: Folder) -> None:
    context = save(folder)
    half = folder.read(context)
    next(half)
    half.close()
    stays = folder.all()

    content = b"".join(folder.read(context))

    assert stays == [context]
    assert content == CONTENT
    assert folder.all() == []


def test_names_that_are_no_ids_reach_no_file(folder: Folder) -> None:
    for id in ("../../etc/passwd", "", "0" * 15, "G" * 16, "0" * 16 + "\n"):
        with pytest.raises(Damaged):
            folder.state_path(id)


def test_what_is_off_stays_off_until_it_is_switched_on(folder: Folder) -> None:
    folder.switch_off("b1 m1", "no tokens")
    folder.switch_off("b2 m1", "none either")
    off = Folder(folder.path).off()

    folder.switch_on()

    assert off == {"b1 m1": "no tokens", "b2 m1": "none either"}
    assert folder.off() == {}


def test_a_models_digest_changes_with_any_of_its_files(folder: Folder, tmp_path: Path) -> None:
    parts = [tmp_path / f"model-0000{n}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.write_bytes(b"one")
    before = folder.model_digest(parts[0])
    again = Folder(folder.path).model_digest(parts[0])

    parts[1].write_bytes(b"two")

    assert parts_of(parts[0]) == parts
    assert before == again != folder.model_digest(parts[0])
