"""Any text is a catalogue or a list of problems."""

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

import tests.support  # noqa: F401
from cortex.functions.catalogue import Catalogue, CatalogueError, notes
from cortex.functions.spec import Engine, Function, revision
from tests.functions.catalogue_files import load, problems


class Bare(str):
    """TOML that is written without quotes."""


NAMES = st.sampled_from(["m", "n", "org/o", "é"])
ATOMS = (
    st.sampled_from(["m", "vllm", "candle", "./x", "", " ", "a\nb"])
    | st.text(max_size=5)
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats()
    | st.booleans()
    | st.sampled_from(["1979-05-27", "07:32:00"]).map(Bare)
)
KEYS = st.sampled_from([*Function.__struct_fields__, "harness"]) | st.text(max_size=4)
VALUES = st.recursive(ATOMS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=5)
VALID = st.fixed_dictionaries(
    {"id": NAMES, "engine": st.sampled_from(list(Engine)).map(str)},
    optional={
        "source": st.text(max_size=5),
        "vram_mb": st.integers(-1, 2**54),
        "args": st.lists(st.text(max_size=3), max_size=2),
        "env": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        "idle_after_s": st.floats(0, 1e10) | st.integers(0, 10**10),
        "priority": st.integers(),
    },
)
INVALID = st.builds(lambda sound, rest: {**sound, **rest}, VALID, st.dictionaries(KEYS, VALUES, max_size=2))
VALID_FILES = st.fixed_dictionaries(
    {"models": st.lists(VALID, max_size=3, unique_by=lambda entry: entry["id"])},
    optional={"aliases": st.dictionaries(st.text(max_size=3), NAMES, max_size=2)},
)
INVALID_FILES = st.fixed_dictionaries(
    {"models": st.lists(INVALID, max_size=3) | VALUES},
    optional={
        "defaults": st.dictionaries(KEYS, VALUES, max_size=2) | VALUES,
        "aliases": st.dictionaries(NAMES, NAMES | ATOMS, max_size=4) | VALUES,
        "more": VALUES,
    },
)


def toml(value: Any) -> str:
    """Write a value as TOML, tables in one line."""
    match value:
        case Bare():
            return str(value)
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{toml(str(k))} = {toml(v)}' for k, v in value.items())}}}"
    return str(value)


def load_or_reject(text: str) -> Catalogue | None:
    try:
        return load(text)
    except CatalogueError as error:
        assert error.problems
        return None


@given(VALID_FILES | INVALID_FILES)
def test_any_declaration_is_a_usable_catalogue_or_a_list_of_problems(declared: dict[str, Any]) -> None:
    catalogue = load_or_reject("\n".join(f"{key} = {toml(value)}" for key, value in declared.items()))

    usable = catalogue or Catalogue({}, {})
    assert set(usable.aliases.values()) <= set(usable.functions)
    assert msgspec.json.decode(msgspec.json.encode(usable), type=Catalogue) == usable
    assert {len(revision(f)) for f in usable.functions.values()} <= {12}
    assert len(notes(usable)) <= 5 * len(usable.functions)


@given(st.text(alphabet="abm[]{}=\"'\\\n\r\t .,#-_0123456789e+é\x00\u2028", max_size=60) | st.text(max_size=60))
@example("models = " + "[" * 3000)
@example("models = " + "{a=" * 2000)
@example("models = " + "9" * 5000)
@example("[[models]]\nid = 'm'\nengine = 'fake'\nargs = ['\\u0000']\n")
@example("\ufeff[[models]]")
def test_any_text_is_a_catalogue_or_a_list_of_problems(text: str) -> None:
    load_or_reject(text)


def test_a_number_or_nesting_beyond_the_limits_is_not_toml() -> None:
    assert problems("a = " + "9" * 5000)[0].startswith("models.toml: is not TOML: Exceeds the limit")
    assert problems("a = " + "[" * 5000)[0].startswith("models.toml: is not TOML: maximum recursion depth")
