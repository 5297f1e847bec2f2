"""`cortex replay` on a real cortex: two functions that evict each other, and what more memory would have changed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually

pytestmark = [pytest.mark.xdist_group("replay"), pytest.mark.long]

KEYS = {"vram_mb": 20_000, "turn_wait_s": 2, "turn_min_s": 0, "idle_after_s": 600}
ORDER = ("f", "g", "f")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A cortex whose one device has served two functions in turns."""
    folder = tmp_path_factory.mktemp("replay")
    catalogue = fake("f", "--load-s", "0.3", **KEYS) + fake("g", "--load-s", "0.3", **KEYS)
    own_stack = Stack(folder, catalogue, more=["--devices", "1x24GB"])
    try:
        for function in ORDER:
            own_stack.chat(function).raise_for_status()
        eventually(lambda: _waited(own_stack) == len(ORDER), what="the decisions")
        yield own_stack
    finally:
        own_stack.end()


def _waited(stack: Stack) -> int:
    return len(stack.http.get("/admin/decisions", params={"what": "waited", "limit": 100}).json()["decisions"])


def replay(stack: Stack, *options: str, models: str = "") -> dict[str, dict[str, Any]]:
    done = stack.cli("replay", "--since", "1h", "--models", models or str(stack.models), "--json", *options)
    assert done.returncode == 0, done.stderr
    return {row["function"]: row for row in json.loads(done.stdout)["functions"]}


def test_the_same_fleet_would_have_done_what_it_did(stack: Stack) -> None:
    rows = replay(stack)

    assert {f: (r["did"]["starts"], r["would"]["starts"]) for f, r in rows.items()} == {"f": (2, 2), "g": (1, 1)}
    assert {f: (r["did"]["evictions"], r["would"]["evictions"]) for f, r in rows.items()} == {"f": (1, 1), "g": (1, 1)}


def test_with_one_more_host_nothing_would_have_been_evicted(stack: Stack) -> None:
    rows = replay(stack, "--add-host", "1x24GB")
    shown = stack.cli("replay", "--since", "1h", "--models", str(stack.models), "--add-host", "more=1x24GB").stdout

    assert {f: (r["would"]["starts"], r["would"]["evictions"]) for f, r in rows.items()} == {"f": (1, 0), "g": (1, 0)}
    assert "2 → 1" in shown and "on here, more" in shown


def test_with_another_catalogue_both_would_have_fit(stack: Stack) -> None:
    small = stack.folder / "small.toml"
    small.write_text("".join(fake(f, "--load-s", "0.3", vram_mb=9000, idle_after_s=600) for f in "fg"))

    rows = replay(stack, models=str(small))

    assert [r["would"]["evictions"] for r in rows.values()] == [0, 0]


@pytest.mark.parametrize(
    ("options", "code", "shown"),
    [
        (["--add-host", "2x"], 2, "'2x' is not like 2x24GB"),
        (["--add-host", "here=1x24GB"], 2, "there is a host 'here' already"),
        (["--remove-host", "her"], 4, "no host is named 'her'; did you mean 'here'?"),
        (["--remove-host", "here"], 1, "no host is left to replay on"),
        (["--since", "-1d"], 2, "'-1d' is not like 30d"),
        (["--since", "0d"], 2, "not more than 0"),
        (["--models", "broken.toml"], 1, "broken.toml:2: is not TOML"),
        (["--models", "contradictory.toml"], 1, "contradictory.toml:6: f: turn_wait_s = 3 is less than turn_min_s = 9"),
        (["--models", "missing.toml"], 1, "missing.toml: cannot be read"),
    ],
)
def test_wrong_input_is_refused_with_what_to_change(stack: Stack, options: list[str], code: int, shown: str) -> None:
    (stack.folder / "broken.toml").write_text('[[models]]\nid = "f\n')
    (stack.folder / "contradictory.toml").write_text(fake("f", vram_mb=9000, turn_wait_s=3, turn_min_s=9))
    options = [str(stack.folder / o) if o.endswith(".toml") else o for o in options]

    done = stack.cli("replay", "--models", str(stack.models), *options)

    assert done.returncode == code
    assert shown.replace(" ", "") in "".join(done.stderr.split()).replace("│", "")
