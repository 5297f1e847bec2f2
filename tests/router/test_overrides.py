"""Runtime overrides on top of the catalogue."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

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


def test_a_minimum_with_hours_comes_and_goes_with_them_over_a_change_of_daylight_saving_time(tmp_path: Path) -> None:
    """On a virtual clock: a Sunday and a Monday of a week in which the clocks go back."""
    (tmp_path / "models.toml").write_text(fake("one", warm="Mon-Fri 07:50-18:00 Europe/Sofia") + fake("two", min=1))
    sofia = ZoneInfo("Europe/Sofia")
    now = datetime(2026, 10, 25, 0, 0, tzinfo=sofia).timestamp()
    live = LiveCatalogue(tmp_path / "models.toml", wall=lambda: now)
    revision, digests = live.resolve("one").revision, {live.digest}
    minimums: list[tuple[str, int]] = []
    for minute in range(0, 2 * 24 * 60 + 60, 10):
        now = datetime(2026, 10, 25, 0, 0, tzinfo=sofia).timestamp() + minute * 60
        live.override({})
        digests.add(live.digest)
        if not minimums or minimums[-1][1] != live.resolve("one").function.min:
            minimums.append((f"{datetime.fromtimestamp(now, sofia):%a %H:%M}", live.resolve("one").function.min))

    assert minimums == [("Sun 00:00", 0), ("Mon 07:50", 1), ("Mon 18:00", 0)]
    assert len(digests) == 2  # agents receive it at each change, and never in between
    assert live.resolve("one").revision == revision
    assert live.resolve("two").function.min == 1


def test_a_minimum_at_run_time_counts_whatever_the_hours(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(fake("one", warm="00:00-24:00 UTC") + fake("two", warm="Mon 08:00-09:00 UTC"))
    live = LiveCatalogue(tmp_path / "models.toml", wall=lambda: 0.0)  # a Thursday

    live.override({"one": Override(min=0), "two": Override(min=1)})

    assert [live.resolve(name).function.min for name in ("one", "two")] == [0, 1]
