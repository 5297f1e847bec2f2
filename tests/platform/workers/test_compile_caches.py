"""Compile caches are bounded, and the folders in use stay."""

import os
import shutil
import time
from pathlib import Path

import pytest

from cortex.platform.workers.compile_caches import MOST_FOLDERS, compiled, has_code, mark, prune

OLD_S = 7200.0


def folder(cache: Path, name: str, *, age_s: float, read_s: float | None = None) -> Path:
    """Make a compile cache that was written `age_s` ago, and last read `read_s` ago."""
    path = cache / "vllm" / "torch_compile_cache" / name / "rank_0_0"
    path.mkdir(parents=True)
    file = path / "graph.py"
    file.write_text("compiled")
    now = time.time()
    os.utime(file, (now - (age_s if read_s is None else read_s), now - age_s))
    return path.parent


@pytest.mark.parametrize("parent", [".", "torch_aot_compile"])
def test_the_least_recently_used_folders_are_removed(tmp_path: Path, parent: str) -> None:
    folders = [folder(tmp_path, f"{parent}/{n}", age_s=OLD_S + n) for n in range(5)]

    removed = prune(tmp_path, most=3)

    assert removed == 2
    assert [f.exists() for f in folders] == [True, True, True, False, False]


def test_a_folder_that_was_read_counts_as_used(tmp_path: Path) -> None:
    read = folder(tmp_path, "read", age_s=OLD_S * 10, read_s=OLD_S)
    written = folder(tmp_path, "written", age_s=OLD_S * 2)

    prune(tmp_path, most=1)

    assert (read.exists(), written.exists()) == (True, False)


def test_a_folder_that_a_start_may_be_reading_stays(tmp_path: Path) -> None:
    folders = [folder(tmp_path, str(n), age_s=60.0 + n) for n in range(3)]

    removed = prune(tmp_path, most=1)

    assert removed == 0
    assert all(f.exists() for f in folders)


def test_a_linked_parent_is_not_pruned(tmp_path: Path) -> None:
    outside = folder(tmp_path / "elsewhere", "outside", age_s=OLD_S)
    (tmp_path / "cache" / "vllm").mkdir(parents=True)
    (tmp_path / "cache" / "vllm" / "torch_compile_cache").symlink_to(outside.parent)

    removed = prune(tmp_path / "cache", most=0)

    assert removed == 0
    assert outside.exists()


def test_marks_are_not_written_through_links(tmp_path: Path) -> None:
    outside, linked, cache = tmp_path / "outside", tmp_path / "linked", tmp_path / "cache"
    for path in (outside, linked, cache / "compiled"):
        path.mkdir(parents=True)
    (linked / "compiled").symlink_to(outside)
    (cache / "compiled" / "org-model-1-full").symlink_to(outside / "new")

    mark(linked, "org/model@1", "full")
    mark(cache, "org/model@1", "full")

    assert list(outside.iterdir()) == []


def test_a_link_out_of_the_cache_is_not_followed(tmp_path: Path) -> None:
    outside = folder(tmp_path / "elsewhere", "outside", age_s=OLD_S)
    folder(tmp_path, "one", age_s=OLD_S)
    (tmp_path / "vllm" / "torch_compile_cache" / "link").symlink_to(outside)

    removed = prune(tmp_path, most=0)

    assert removed == 1
    assert outside.exists()


def test_a_cache_that_does_not_exist_is_pruned_without_error(tmp_path: Path) -> None:
    assert prune(tmp_path / "nowhere") == 0


def test_a_mark_says_for_which_revision_and_settings_there_is_code(tmp_path: Path) -> None:
    folder(tmp_path, "one", age_s=0)
    mark(tmp_path, "abc", "full")
    mark(tmp_path, "def", "few graphs")

    answers = {r: compiled(tmp_path, r, ("full", "few graphs")) for r in ("abc", "def", "ghi")}

    assert answers == {"abc": ("full",), "def": ("few graphs",), "ghi": ()}


def test_no_name_leaves_the_folder_of_the_marks(tmp_path: Path) -> None:
    folder(tmp_path / "cache", "one", age_s=0)
    mark(tmp_path / "cache", "../../outside", "full")

    assert compiled(tmp_path / "cache", "../../outside", ("full",)) == ("full",)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_the_marks_of_a_cache_that_was_emptied_do_not_count(tmp_path: Path) -> None:
    path = folder(tmp_path, "one", age_s=0)
    mark(tmp_path, "abc", "full")

    shutil.rmtree(path)

    assert compiled(tmp_path, "abc", ("full",)) == ()


def test_the_marks_that_were_used_longest_ago_are_removed(tmp_path: Path) -> None:
    folder(tmp_path, "one", age_s=0)
    for n in range(MOST_FOLDERS):
        mark(tmp_path, str(n), "full")
        os.utime(tmp_path / "compiled" / f"{n}-full", (n, n))
    mark(tmp_path, "0", "full")

    mark(tmp_path, "new", "full")

    left = [r for r in ("0", "1", "2", "new") if compiled(tmp_path, r, ("full",))]
    assert left == ["0", "2", "new"]


def test_units_beyond_the_size_go_the_least_recently_used_first(tmp_path: Path) -> None:
    for n in range(4):
        path = folder(tmp_path, str(n), age_s=OLD_S + n)
        (path / "large").write_bytes(bytes(1000))
        os.utime(path / "large", (time.time() - OLD_S - n,) * 2)
    file = tmp_path / "inductor" / "ab" / "code.so"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(5000))
    os.utime(file, (time.time() - OLD_S * 2,) * 2)

    removed = prune(tmp_path, most_bytes=2100)

    assert removed == 3
    assert sorted(p.name for p in (tmp_path / "vllm" / "torch_compile_cache").iterdir()) == ["0", "1"]
    assert not file.exists()


def test_units_that_were_not_used_for_long_are_removed(tmp_path: Path) -> None:
    old, new = folder(tmp_path, "old", age_s=OLD_S * 10), folder(tmp_path, "new", age_s=OLD_S)

    removed = prune(tmp_path, most_age_s=OLD_S * 5)

    assert (removed, old.exists(), new.exists()) == (1, False, True)


def test_code_is_for_the_place_where_it_was_compiled(tmp_path: Path) -> None:
    folder(tmp_path, "one", age_s=0)
    mark(tmp_path, "abc", "full", "here")

    places = [has_code(tmp_path, "abc", "full", place) for place in ("here", "there")]

    assert places == [True, False]
    assert not has_code(tmp_path, "def", "full", "here")
