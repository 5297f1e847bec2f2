"""What operators set at run time, over the catalogue."""

from pathlib import Path

from cortex.platform.record import Override
from cortex.router.live_catalogue import LiveCatalogue
from tests.support.catalogues import aliases, fake


def a_directory(folder: Path) -> LiveCatalogue:
    (folder / "models.toml").write_text("\n".join([fake("one", max=2), fake("two"), aliases({"first": "one"})]))
    return LiveCatalogue(folder / "models.toml")


def test_an_override_changes_the_function_but_not_what_its_worker_runs(tmp_path: Path) -> None:
    directory = a_directory(tmp_path)
    before, digest = directory.find("one"), directory.digest

    directory.override({"one": Override(pinned=True, min=1)})

    after = directory.find("first")
    assert (after.function.pinned, after.function.min, after.function.max) == (True, 1, 2)
    assert after.revision == before.revision
    assert directory.digest != digest  # agents are told
    assert directory.find("two").function.pinned is False


def test_taking_an_override_back_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    directory = a_directory(tmp_path)
    digest = directory.digest

    directory.override({"one": Override(max=5), "gone": Override(min=1)})
    directory.override({})

    assert directory.digest == digest
    assert directory.find("one").function.max == 2
