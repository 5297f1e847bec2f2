"""What the documents promise is there."""

import re
from pathlib import Path

import pytest

from cortex.cli.main import cli
from cortex.functions.spec import Function
from cortex.platform import metrics
from cortex.router.live_catalogue import load
from tests.support.cli_page import commands
from tests.support.pages import PAGES

ROOT = Path(__file__).parent.parent


def test_the_committed_catalogue_stands_and_has_every_option_once() -> None:
    text = (ROOT / "models.toml").read_text()

    keys = re.findall(r"^([a-z_]+) =", text, re.MULTILINE)
    assert load(ROOT / "models.toml").functions
    assert sorted(k for k in keys if k != "idle_after_s") == sorted(
        f for f in Function.__struct_fields__ if f != "idle_after_s"
    )
    assert keys.count("idle_after_s") == 1


def test_the_example_fleet_stands() -> None:
    assert len(load(ROOT / "examples" / "fleet.toml").functions) == 5


def test_every_module_of_an_area_is_in_its_readme() -> None:
    for area in ("functions", "platform", "router"):
        readme = (ROOT / area / "README.md").read_text()
        folder = ROOT / area / "cortex" / area
        names = [p.name for p in folder.iterdir() if p.suffix == ".py" and p.name != "__init__.py"]
        packages = [p.name for p in folder.iterdir() if p.is_dir() and (p / "__init__.py").exists()]

        missing = [n for n in (*names, *packages) if n not in readme]

        assert not missing, f"{area}/README.md says nothing of {missing}"


def test_the_readmes_commands_are_recipes_and_subcommands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    recipes = re.findall(r"^([a-z-]+)[^:=\n]*:", (ROOT / "Justfile").read_text(), re.MULTILINE)

    for recipe in re.findall(r"(?:uv run |`)just ([a-z-]+)", readme):
        assert recipe in recipes, recipe


def test_every_command_but_those_that_serve_or_print_text_prints_json_too() -> None:
    prints_text = {"agent", "completion", "fn logs", "jobs cancel", "router", "up"}
    without = {
        " ".join(names[1:])
        for command, names in commands(cli, ("cortex",))
        if "--json" not in {o for p in command.params for o in p.opts}
    }

    assert without == prints_text


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_what_the_code_says(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), "run `just docs`"


def test_every_setting_says_what_it_means() -> None:
    tables = (ROOT / "docs" / "cortex.md").read_text() + (ROOT / "docs" / "models.md").read_text()

    assert re.findall(r"^(\| `\w+` \|.*\|  \|)$", tables, re.MULTILINE) == []


def test_rules_and_panels_name_only_metrics_that_there_are() -> None:
    known = {m.name for m in metrics.TABLE}
    for name in ("alerts.yml", "dashboard.json"):
        text = (ROOT / "deploy" / "monitoring" / name).read_text()
        for metric in re.findall(r"\bcortex_[a-z_]+", text):
            plain = re.sub("_(bucket|sum|count)$", "", metric)
            assert metric in known or plain in known, f"{name}: {metric}"


def promises(text: str) -> dict[str, str]:
    """Return what SECURITY.md promises, by its beginning: every row of the table, every point of "How"."""
    rows = re.findall(r"^\|(?! who \||---)(.+)\|$", text, re.MULTILINE)
    points = text.partition("## How\n")[2].partition("\n## ")[0].split("\n- ")[1:]
    return {promise.strip()[:60]: promise for promise in (*rows, *points)}


def named_tests(text: str) -> list[str]:
    return re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`", text)


def test_every_promise_of_security_md_names_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text()

    assert len(promises(text)) > 30
    assert [beginning for beginning, promise in promises(text).items() if not named_tests(promise)] == []


def test_every_test_that_security_md_names_exists() -> None:
    tests = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]

    missing = {
        n
        for n in named_tests((ROOT / "SECURITY.md").read_text())
        if not any(t.endswith(f"/{n}") or t == n for t in tests)
    }

    assert missing == set()
