"""The folder: names, privacy, results that grow, ends and expiry."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.router.batches.batch import WINDOW_S, Counts, Form, Status, openai_file
from cortex.router.batches.folder import BLOCK, INPUT, UPLOAD_S, BadName, Damaged, Folder, new_id, offsets
from cortex.router.batches.results import RESULTS, Results
from tests.router.batches.batches import NOW, add_batch, entry, file_size_limit, ids, text

TTL_S = 100.0
PREFIXES = {Form.OPENAI: "batch_", Form.ANTHROPIC: "msgbatch_"}
LAST = NOW + WINDOW_S + TTL_S
"""When a batch that was created at `NOW` is removed at the latest."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder."""
    return Folder(tmp_path / "files")


def test_only_this_user_can_read_the_folder(folder: Folder) -> None:
    add_batch(folder, text(entry("a")))

    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.path.rglob("*")} == {0o600, 0o700}


@pytest.mark.parametrize("name", ["../file-0", "file-../../../../x", "", "file-" + "0" * 23, "file-" + "g" * 24])
def test_an_invalid_id_is_rejected_before_it_becomes_a_path(folder: Folder, name: str) -> None:
    with pytest.raises(BadName):
        folder.file("k1", name)
    with pytest.raises(BadName):
        folder.file("../k1", "file-" + "0" * 24)


def test_a_batch_is_open_until_its_end_and_has_its_results_as_files(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))
    results = Results(folder.work_folder(batch))
    results.add(b'{"custom_id": "a"}\n', to_errors=False)
    results.close()
    before = folder.open_batches()

    folder.end(
        replace(batch, status=Status.COMPLETED, ended=NOW, removed_at=NOW + 9, counts=Counts(total=1, succeeded=1))
    )

    assert before == [("k1", batch.id)]
    assert folder.open_batches() == []
    assert ids(folder.content("k1", batch.output_file)) == ["a"]
    assert folder.file("k1", batch.error_file) is None
    assert not folder.work_folder(batch).exists()


def test_an_interrupted_end_is_repeated_without_loss(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))
    work = folder.work_folder(batch)
    (work / RESULTS).write_bytes(b'{"custom_id": "a"}\n')
    (work / RESULTS).rename(folder.content("k1", batch.output_file))  # and then the process was killed

    folder.end(
        replace(batch, status=Status.COMPLETED, ended=NOW, removed_at=NOW + 9, counts=Counts(total=1, succeeded=1))
    )

    assert ids(folder.content("k1", batch.output_file)) == ["a"]
    stored = folder.file("k1", batch.output_file)
    assert stored is not None and stored.size > 0


def test_a_deleted_file_stays_readable_for_its_batch(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))

    removed = folder.remove_file("k1", batch.input_file)

    assert removed
    assert ids(folder.work_folder(batch) / INPUT) == ["a"]


@pytest.mark.parametrize("cut", range(1, 19))
def test_a_partial_result_is_removed_when_the_results_are_opened(tmp_path: Path, cut: int) -> None:
    whole = b'{"custom_id": "a"}\n'
    (tmp_path / RESULTS).write_bytes(whole + b'{"custom_id": "b"}\n'[:-cut])

    results = Results(tmp_path)
    results.add(b'{"custom_id": "c"}\n', to_errors=False)
    results.close()

    assert ids(tmp_path / RESULTS) == ["a", "c"]


def test_a_failed_write_to_a_full_disk_leaves_the_results_unchanged(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(b'{"custom_id": "a"}\n', to_errors=False)
    resource_limit = (tmp_path / RESULTS).stat().st_size + 5

    with file_size_limit(resource_limit), pytest.raises(OSError):
        results.add(b'{"custom_id": "b"}\n', to_errors=False)

    results.close()
    assert ids(tmp_path / RESULTS) == ["a"]


def test_a_sweep_removes_what_has_expired_but_no_input_of_an_open_batch(folder: Folder) -> None:
    open_one, ended = add_batch(folder, text(entry("a"))), add_batch(folder, text(entry("b")), created=NOW + 1)
    for batch in (open_one, ended):
        file = folder.file("k1", batch.input_file)
        assert file is not None
        folder._write(folder.content("k1", file.id).with_suffix(".json"), replace(file, expires=NOW))
    folder.end(replace(ended, status=Status.CANCELLED, ended=NOW, removed_at=NOW + 5))

    early, late = folder.sweep(NOW + 4, TTL_S), folder.sweep(NOW + 6, TTL_S)

    assert (early, late) == (0, 2)
    assert [b.id for b in folder.batches("k1")] == [open_one.id]
    assert [f.id for f in folder.files("k1")] == [open_one.input_file]


def test_the_input_of_an_open_batch_counts_once_and_also_after_its_file_is_deleted(folder: Folder) -> None:
    content = text(*(entry(str(i)) for i in range(100)))
    batch = add_batch(folder, content)

    before = folder.size_of("k1")
    folder.remove_file("k1", batch.input_file)

    assert before == len(content) + 2 * BLOCK
    assert folder.size_of("k1") == len(content) + BLOCK


def test_a_file_or_batch_whose_value_cannot_be_written_takes_no_space(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = add_batch(folder, text(entry("a")))
    before = sorted(folder.path.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(folder, "_write", full)
    for add in (
        lambda: folder.add_batch(replace(batch, id="batch_" + "0" * 24), folder.content("k1", batch.input_file)),
        lambda: add_batch(folder, text(entry("b"))),
    ):
        with pytest.raises(OSError):
            add()

    assert sorted(folder.path.rglob("*")) == before


def test_a_sweep_removes_what_an_interrupted_creation_left(folder: Folder) -> None:
    running, interrupted = add_batch(folder, text(entry("a"))), add_batch(folder, text(entry("b")))
    (folder.path / "open" / f"k1~{interrupted.id}").unlink()
    (folder.path / "keys" / "k1" / f"{interrupted.input_file}.json").unlink()
    folder.work_folder(replace(running, id="batch_" + "0" * 24)).mkdir()
    work = folder.work_folder(running)
    (work / RESULTS).write_bytes(b"{}\n")
    (work / RESULTS).rename(folder.content("k1", running.output_file))  # its end has just begun
    for path in folder.path.rglob("*"):
        os.utime(path, (NOW, NOW))

    folder.sweep(2e9 + UPLOAD_S, TTL_S)

    left = {p.relative_to(folder.path / "keys" / "k1").as_posix() for p in (folder.path / "keys" / "k1").rglob("*")}
    of_file = {f"{running.input_file}.json", f"{running.input_file}.jsonl"}
    assert left == {f"{running.id}.json", running.id, f"{running.id}/{INPUT}", f"{running.output_file}.jsonl", *of_file}


def damage(folder: Folder, *names: str) -> None:
    for name in names:
        (folder.path / "keys" / "k1" / f"{name}.json").write_bytes(b'{"id": 1}')


def test_a_damaged_value_is_an_error_and_not_a_missing_one(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))
    damage(folder, batch.id, batch.input_file)

    with pytest.raises(Damaged, match=batch.id):
        folder.batch("k1", batch.id)
    with pytest.raises(Damaged, match=batch.input_file):
        folder.file("k1", batch.input_file)


def test_of_a_damaged_file_the_content_is_known(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))
    damage(folder, batch.input_file)

    file = folder.known_file("k1", batch.input_file)

    assert file is not None
    assert (file.size, file.created, openai_file(file)["expires_at"]) == (len(text(entry("a"))), NOW, None)
    assert [f.id for f in folder.files("k1")] == [file.id]
    assert folder.remove_file("k1", file.id)


@pytest.mark.parametrize("form", list(Form))
def test_a_damaged_batch_that_has_ended_is_a_failed_one_with_its_results(folder: Folder, form: Form) -> None:
    batch = add_batch(folder, text(entry("a")), form=form, id=new_id(PREFIXES[form], NOW))
    with contextlib.closing(Results(folder.work_folder(batch))) as results:
        results.add(b'{"custom_id": "a"}\n', to_errors=False)
    done = Counts(total=1, succeeded=1)
    folder.end(replace(batch, status=Status.COMPLETED, ended=NOW, removed_at=NOW + 9, counts=done))
    damage(folder, batch.id)

    known = folder.known_batch("k1", batch.id)

    assert known is not None
    assert (known.status, known.counts, known.problems[0].code) == (Status.FAILED, done, "batch_damaged")
    assert (known.form, known.output_file, known.has_output) == (form, batch.output_file, True)
    assert folder.find(batch.id) == known
    assert list(folder.batches("k1")) == list(folder.newest(5)) == [known]
    folder.remove_batch(known)
    assert list(folder.batches("k1")) == []
    assert not folder.content("k1", batch.output_file).exists()


def test_a_damaged_batch_that_is_open_stays_open_until_the_batch_worker_ends_it(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))
    damage(folder, batch.id)

    known = folder.known_batch("k1", batch.id)

    assert known is not None
    assert known.status.is_open


def test_a_sweep_removes_a_damaged_value_at_the_age_at_which_any_batch_is_removed(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")))
    folder.end(replace(batch, status=Status.CANCELLED, ended=NOW, removed_at=NOW + 5))
    path = folder.path / "keys" / "k1" / f"{batch.id}.json"
    path.write_bytes(b"{")
    os.utime(path, (NOW, NOW))

    exists = [folder.sweep(at, TTL_S) is not None and path.exists() for at in (LAST - 1, LAST)]

    assert exists == [True, False]


def test_batches_of_all_keys_are_listed_in_pages_by_time(folder: Folder) -> None:
    batches = [add_batch(folder, text(entry("a")), key=f"k{i % 3}", created=NOW + i) for i in range(5)]
    newest_first = [b.id for b in reversed(batches)]

    pages = [folder.newest(2), folder.newest(2, newest_first[1]), folder.newest(2, newest_first[3])]

    assert [[b.id for b in page] for page in pages] == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert folder.find(batches[0].id) == batches[0]


def test_a_folder_is_locked_while_a_batch_worker_has_its_lock(folder: Folder) -> None:
    add_batch(folder, text(entry("a")))

    with folder.lock():
        during = folder.is_locked()

    assert (during, folder.is_locked()) == (True, False)


def test_offsets_are_those_of_the_lines_and_a_long_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"ab\n" + b"x" * 100 + b"\ncd")

    assert list(offsets(path, 10)) == [(0, b"ab\n"), (3, b"x" * 11), (104, b"cd")]
