"""What the documents promise is there."""

import hashlib
import inspect
import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from cortex.cli.main import cli
from cortex.functions.spec import Function
from cortex.platform import key_record, metrics, quota, registry
from cortex.platform.agent.publisher import TTL_BEATS
from cortex.platform.record_keys import RecordKeys
from cortex.platform.weights.jobs import FAILED_TTL_S, RESULT_TTL_S
from cortex.router.access.sessions import SESSION_S
from cortex.router.activation.activator import CLAIM_S
from cortex.router.background import SWEEP_LEASE_S
from cortex.router.live_catalogue import load
from cortex.router.plan_types import Plan
from tests.e2e.security.test_rights import ROUTER
from tests.support.cli_page import commands
from tests.support.dashboard import NO_PANEL, ROWS
from tests.support.pages import PAGES

ROOT = Path(__file__).parent.parent


def test_the_committed_catalogue_is_valid_and_has_every_option_once() -> None:
    text = (ROOT / "models.toml").read_text()

    keys = re.findall(r"^([a-z_]+) =", text, re.MULTILINE)
    assert load(ROOT / "models.toml").functions
    assert sorted(k for k in keys if k != "idle_after_s") == sorted(
        f for f in Function.__struct_fields__ if f not in ("idle_after_s", "adapters")
    )
    assert keys.count("idle_after_s") == 1


def test_the_example_fleet_is_valid() -> None:
    assert len(load(ROOT / "examples" / "fleet.toml").functions) == 5


def test_every_module_of_an_area_is_in_its_readme() -> None:
    for area in ("functions", "platform", "router"):
        readme = (ROOT / area / "README.md").read_text()
        folder = ROOT / area / "cortex" / area
        names = [p.name for p in folder.iterdir() if p.suffix == ".py" and p.name != "__init__.py"]
        packages = [p.name for p in folder.iterdir() if p.is_dir() and (p / "__init__.py").exists()]

        missing = [n for n in (*names, *packages) if n not in readme]

        assert not missing, f"{area}/README.md says nothing of {missing}"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "tests/README.md", "docs/operating.md", "docs/keys.md"]
)
def test_every_recipe_that_a_page_names_exists(page: str) -> None:
    readme = (ROOT / page).read_text()
    recipes = re.findall(r"^([a-z-]+)[^:=\n]*:", (ROOT / "Justfile").read_text(), re.MULTILINE)

    for recipe in re.findall(r"(?:uv run |`)just ([a-z-]+)", readme):
        assert recipe in recipes, recipe


def test_every_command_has_json_output_except_those_that_serve_or_print_text() -> None:
    prints_text = {"agent", "completion", "fn logs", "host token", "jobs cancel", "router", "up"}
    without = {
        " ".join(names[1:])
        for command, names in commands(cli, ("cortex",))
        if "--json" not in {o for p in command.params for o in p.opts}
    }

    assert without == prints_text


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), "run `just docs`"


def test_the_page_of_the_admin_api_has_every_path_of_the_router() -> None:
    listed = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "admin.md").read_text(), re.MULTILINE)

    assert sorted(listed) == sorted(route for route in ROUTER if " /admin" in route)


def test_the_plans_in_the_api_page_are_plans_with_every_field_that_they_name() -> None:
    section = (ROOT / "docs" / "api.md").read_text().partition("### Plans")[2]
    examples = [json.loads(text) for text in re.findall(r"```json\n(.+?)```", section, re.DOTALL)]

    plans = [json.loads(msgspec.json.encode(msgspec.convert(example, Plan))) for example in examples]

    assert [plan["action"] for plan in plans] == ["warm", "cool", "drain"]
    assert all(included(example, plan) for example, plan in zip(examples, plans, strict=True))


def included(part: object, whole: object) -> bool:
    """Whether every key and value of a JSON value is in another."""
    match part, whole:
        case dict(), dict():
            return all(key in whole and included(value, whole[key]) for key, value in part.items())
        case list(), list():
            return len(part) == len(whole) and all(map(included, part, whole))
    return part == whole


def test_every_setting_says_what_it_means() -> None:
    tables = (ROOT / "docs" / "cortex.md").read_text() + (ROOT / "docs" / "models.md").read_text()

    assert re.findall(r"^(\| `\w+` \|.*\|  \|)$", tables, re.MULTILINE) == []


def test_rules_and_panels_name_only_existing_metrics() -> None:
    known = {m.name for m in metrics.TABLE}
    for name in ("alerts.yml", "dashboard.json"):
        text = (ROOT / "deploy" / "monitoring" / name).read_text()
        for metric in re.findall(r"\bcortex_[a-z_]+", text):
            plain = re.sub("_(bucket|sum|count)$", "", metric)
            assert metric in known or plain in known, f"{name}: {metric}"


def test_every_metric_has_a_panel_or_a_reason_to_have_none() -> None:
    shown = set(re.findall(r"\bcortex_[a-z_]+", (ROOT / "deploy" / "monitoring" / "dashboard.json").read_text()))
    shown |= {re.sub("_(bucket|sum|count)$", "", name) for name in shown}

    assert {m.name for m in metrics.TABLE} - shown == {m.name for m in NO_PANEL}


def test_each_area_has_a_row_of_panels() -> None:
    assert [*ROWS] == [
        "Now", "Requests", "Tokens", "Usage", "Batches", "Starts", "Hosts", "Routers and the record",
    ]  # fmt: skip
    assert all(ROWS.values())


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


def keys_of_the_record() -> list[str]:
    """Return every key that `RecordKeys` names, with its parameters in angle brackets."""
    names = RecordKeys()
    keys = [value for name, value in vars(names).items() if name != "prefix" and isinstance(value, str)]
    for name, method in inspect.getmembers(names, inspect.ismethod):
        if not name.startswith("_"):
            (parameter,) = inspect.signature(method).parameters
            named = method(f"<{parameter}>")
            keys += [named] if isinstance(named, str) else named
    return keys


def rows_of_the_record() -> dict[str, list[str]]:
    """Return the table of keys in the-record.md: type, writer, lifetime and content by key."""
    section = (ROOT / "docs" / "design" / "the-record.md").read_text().partition("## Keys\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    return {key.strip("`"): cells for key, *cells in rows}


def test_the_page_of_the_record_has_every_key_once_and_no_other() -> None:
    assert sorted(rows_of_the_record()) == sorted(keys_of_the_record())


def test_the_page_of_the_record_has_the_type_of_every_key() -> None:
    types = {key: kind.replace("zset", "sorted set") for key, kind in RecordKeys().types.items()}

    assert {key: cells[0] for key, cells in rows_of_the_record().items() if key in types} == types
    assert all(len(cells) == 4 and all(cells) for cells in rows_of_the_record().values())


@pytest.mark.parametrize(
    ("key", "lifetime"),
    [
        ("cortex:host:<name>", f"{TTL_BEATS} heartbeats"),
        ("cortex:namesake:<host>", f"{TTL_BEATS} heartbeats"),
        ("cortex:counts:<host>", f"{TTL_BEATS} heartbeats"),
        ("cortex:router:<router>", f"{registry.ROUTER_TTL_S:g} s"),
        ("cortex:claim:<function>", f"{CLAIM_S:g} s"),
        ("cortex:sweep", f"{SWEEP_LEASE_S:g} s"),
        ("cortex:key:<digest>", f"{key_record.EXPIRED_S // 86400} days"),
        ("cortex:tickets:{<key>}", f"{quota.LEASE_S:g} s"),
        ("cortex:sessions", f"{SESSION_S // 86400} days"),
        ("cortex:decisions", f"the last {registry.MOST_DECISIONS}"),
        ("cortex:question:<token>", f"{registry.ANSWERS_S:g} s"),
        ("cortex:answers:<token>", f"{registry.ANSWERS_S:g} s"),
        ("cortex:death:<token>", f"{registry.ANSWERS_S:g} s"),
        ("cortex-<host>", f"finished jobs {RESULT_TTL_S // 3600} hour, failed ones {FAILED_TTL_S // 86400} day"),
    ],
)
def test_the_page_of_the_record_has_the_lifetime_of_every_key_that_expires(key: str, lifetime: str) -> None:
    assert rows_of_the_record()[key][2].startswith(lifetime)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link of a page leads to a file, and to a heading of it where it names one."""
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


def test_every_link_between_pages_leads_to_a_file_and_a_heading_that_exist() -> None:
    pages = [p for p in ROOT.rglob("*.md") if not {".venv", "artifacts", "node_modules"} & set(p.parts)]

    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^):\s]+)\)", page.read_text())
        if not leads_somewhere(page, target)
    ]

    assert missing == []


def test_every_module_that_a_design_page_names_exists() -> None:
    files = [path for area in ("functions", "platform", "router", "tests") for path in (ROOT / area).rglob("*")]
    paths = [f"/{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in files]
    pages = [*(ROOT / "docs" / "design").glob("*.md"), *(ROOT / "docs" / "adr").glob("*.md")]

    missing = [
        f"{page.name}: {name}"
        for page in pages
        for name in re.findall(r"`([\w/…]+(?:\.py|/))`", page.read_text())
        if not any(path.endswith("/" + name.rpartition("…/")[2]) for path in paths)
    ]

    assert missing == []


def terms_of_the_glossary() -> list[tuple[str, str]]:
    """Return the terms of docs/glossary.md with the paths of their modules."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    return re.findall(r"^\| ([\w -]+) \| .+ \| `([\w/]+\.py)` \|$", text, re.MULTILINE)


def test_the_glossary_has_each_term_once_in_alphabetical_order() -> None:
    terms = [term for term, _ in terms_of_the_glossary()]

    rows = re.findall(r"^\| (?!term)", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) == len(rows) > 60
    assert terms == sorted(set(terms), key=lambda term: term.replace("-", " "))


def uses(module: str, term: str) -> bool:
    """Whether a module exists and has a term in its name or its text, in any of its grammatical forms."""
    path = ROOT / module
    text = f"{path.stem} {path.read_text()}".lower().replace("_", " ").replace("-", " ") if path.exists() else ""
    return bool(re.search(rf"\b{term.replace('-', ' ').removesuffix('y')}", " ".join(text.split())))


def test_every_module_of_the_glossary_exists_and_uses_its_term() -> None:
    assert [f"{term}: {module}" for term, module in terms_of_the_glossary() if not uses(module, term)] == []


def test_the_cases_in_dialects_md_are_those_in_the_names_of_tests() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tested = {int(number) for number in re.findall(r"^ *(?:async )?def test_case_(\d+)_", text, re.MULTILINE)}

    listed = [int(n) for n in re.findall(r"^(\d+)\. ", (ROOT / "docs" / "dialects.md").read_text(), re.MULTILINE)]

    assert listed == sorted(tested)
    assert len(listed) == len(set(listed))


def folders_with_several_modules() -> list[Path]:
    """Return the folders of the source that hold more than one module or folder of modules."""
    folders = [ROOT / "router" / "cortex" / "cli"]
    for area in ("functions", "platform", "router"):
        folders += [path for path in (ROOT / area / "cortex" / area).rglob("*") if path.is_dir()]
    return sorted(folder for folder in folders if len(modules_of(folder)) > 1)


def modules_of(folder: Path) -> list[str]:
    """Return the modules of a folder, and its folders that have modules, as a README names them."""
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    return sorted(modules + [f"{path.name}/" for path in folder.iterdir() if path.is_dir() and list(path.glob("*.py"))])


@pytest.mark.parametrize("folder", [str(folder.relative_to(ROOT)) for folder in folders_with_several_modules()])
def test_the_readme_of_a_folder_has_each_of_its_modules_once(folder: str) -> None:
    readme = ROOT / folder / "README.md"

    rows = re.findall(r"^\| `([\w/.]+)` \|", readme.read_text(), re.MULTILINE)

    assert sorted(rows) == modules_of(ROOT / folder)
    assert len(readme.read_text().splitlines()) < 60


def test_the_readme_of_the_tests_has_every_folder_and_every_helper() -> None:
    readme = (ROOT / "tests" / "README.md").read_text()
    folders = [f"{path.parent.name}/" for path in (ROOT / "tests").glob("[!_.]*/__init__.py")]
    helpers = [path.name for path in (ROOT / "tests" / "support").rglob("*.py") if path.name != "__init__.py"]

    assert [name for name in (*folders, *helpers) if name not in readme] == []


def test_the_licence_is_the_unaltered_gpl_3_also_in_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()

    assert digest == "3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986"
    assert (project["license"], project["license-files"]) == ("GPL-3.0-only", ["LICENSE"])


def test_every_package_is_marked_as_typed() -> None:
    packages = [path for area in ("functions", "platform", "router") for path in (ROOT / area / "cortex").iterdir()]

    assert [p.name for p in packages if (p / "__init__.py").exists() and not (p / "py.typed").exists()] == []


def test_continuous_integration_runs_on_every_python_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text()

    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]

    assert re.findall(r"python: \[(.*)\]", workflow) == [", ".join(f'"{version}"' for version in versions)]
    assert "run: .ci/run" in workflow


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
