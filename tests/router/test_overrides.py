"""Runtime overrides on top of the catalogue."""

from pathlib import Path

from cortex.platform.record import Override
from cortex.router.live_catalogue import LiveCatalogue
from tests.support.catalogues import aliases, fake


def a_catalogue(folder: Path) -> LiveCatalogue:
    (folder / "models.toml").write_text("\n".join([fake("one", max=2), fake("two"), aliases({"first": "one"})]))
    return LiveCatalogue(folder / "models.toml")


def test_an_override_changes_the_function_but_not_its_revision(tmp_path: Path) -> None:
    live = a_catalogue(tmp_path)
    before, digest = live.resolve("one"), live.digest

    live.override({"one": Override(pinned=True, min=1)})

    after = live.resolve("first")
    assert (after.function.pinned, after.function.min, after.function.max) == (True, 1, 2)
    assert after.revision == before.revision
    assert live.digest != digest  # so agents receive the new catalogue
    assert live.resolve("two").function.pinned is False


def test_removing_an_override_restores_the_declared_settings(tmp_path: Path) -> None:
    live = a_catalogue(tmp_path)
    digest = live.digest

    live.override({"one": Override(max=5), "gone": Override(min=1)})
    live.override({})

    assert live.digest == digest
    assert live.resolve("one").function.max == 2
