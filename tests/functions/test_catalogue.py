"""The catalogue: valid texts, and problems with their line and the nearest key."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tests.support  # noqa: F401
from cortex.functions.catalogue import Catalogue, CatalogueError, Problem, Substitute, notes, read
from cortex.functions.spec import Engine, Function, revision

SEED = """\
# An unchanged file of the Rust system.
[[models]]
id = "Qwen/Qwen3-8B"
harness = "candle"
vram_mb = 18000
min_devices = 1
min_device_vram_mb = 16000

[[models]]
id = "Qwen/Qwen3-32B"
harness = "candle"
quant = "Q4_K_M"
vram_mb = 22000
min_devices = 2
min_device_vram_mb = 12000
pinned_on = ["beast", "benjy"]

[aliases]
"helexa/small" = "Qwen/Qwen3-8B"
"helexa/large" = "Qwen/Qwen3-32B"
"""


def load(text: str) -> Catalogue:
    return read(text, file="models.toml", folder="/etc/cortex")


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        load(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_catalogue_of_the_rust_system_loads_unchanged() -> None:
    catalogue = load(SEED)

    assert list(catalogue.functions.values()) == [
        Function(id="Qwen/Qwen3-8B", engine=Engine.VLLM, vram_mb=18000, min_device_vram_mb=16000),
        Function(
            id="Qwen/Qwen3-32B",
            engine=Engine.LLAMACPP,
            quant="Q4_K_M",
            vram_mb=22000,
            min_devices=2,
            min_device_vram_mb=12000,
            pinned_on=("beast", "benjy"),
        ),
    ]
    assert catalogue.aliases == {"helexa/small": "Qwen/Qwen3-8B", "helexa/large": "Qwen/Qwen3-32B"}


def test_every_key_is_read() -> None:
    catalogue = load(
        """
        [[models]]
        id = "org/model"
        engine = "llamacpp"
        source = "org/repo:model.gguf"
        quant = "Q4_K_M"
        vram_mb = 1
        min_devices = 2
        min_device_vram_mb = 3
        pinned_on = ["host-a"]
        labels = ["fast"]
        context = 4
        args = ["--flash-attn"]
        env = { A = "b" }
        min = 5
        max = 6
        target_concurrency = 7
        idle_after_s = 8
        queue = 9
        priority = -10
        start_timeout_s = 11.5
        request_timeout_s = 12
        """
    )

    assert catalogue.functions["org/model"] == Function(
        id="org/model",
        engine=Engine.LLAMACPP,
        source="org/repo:model.gguf",
        quant="Q4_K_M",
        vram_mb=1,
        min_devices=2,
        min_device_vram_mb=3,
        pinned_on=("host-a",),
        labels=("fast",),
        context=4,
        args=("--flash-attn",),
        env={"A": "b"},
        min=5,
        max=6,
        target_concurrency=7,
        idle_after_s=8.0,
        queue=9,
        priority=-10,
        start_timeout_s=11.5,
        request_timeout_s=12.0,
    )


def test_an_empty_file_is_an_empty_catalogue() -> None:
    assert load("") == Catalogue({}, {})


def test_functions_and_aliases_are_in_the_order_declared() -> None:
    catalogue = load(
        """
        models = [{ id = "z", engine = "fake" }, { id = "a", engine = "fake" }]
        aliases = { y = "a", b = "a", x = "z" }
        """
    )

    assert list(catalogue.functions) == ["z", "a"]
    assert list(catalogue.aliases) == ["y", "b", "x"]


# Engines.


@pytest.mark.parametrize(
    ("declared", "engine"),
    [
        ('engine = "vllm"', Engine.VLLM),
        ('engine = "command"\ncommand = ["serve", "{port}"]', Engine.COMMAND),
        ('harness = "llamacpp"', Engine.LLAMACPP),
        ('harness = "fake"', Engine.FAKE),
        ('harness = "candle"', Engine.VLLM),
        ('harness = "candle"\nquant = "Q8_0"', Engine.LLAMACPP),
        ('harness = "candle"\nquant = ""', Engine.VLLM),
    ],
)
def test_engine_and_its_synonym_harness_select_the_engine(declared: str, engine: Engine) -> None:
    assert load(f'[[models]]\nid = "m"\n{declared}').functions["m"].engine is engine


# Defaults.


def test_defaults_apply_to_keys_that_an_entry_does_not_set() -> None:
    catalogue = load(
        """
        [defaults]
        engine = "fake"
        idle_after_s = 5
        env = { A = "1" }
        [[models]]
        id = "plain"
        [[models]]
        id = "own"
        idle_after_s = 6
        env = { B = "2" }
        """
    )

    assert catalogue.functions == {
        "plain": Function(id="plain", engine=Engine.FAKE, idle_after_s=5.0, env={"A": "1"}),
        "own": Function(id="own", engine=Engine.FAKE, idle_after_s=6.0, env={"B": "2"}),
    }


@pytest.mark.parametrize(
    ("default", "own"),
    [('harness = "candle"', 'engine = "fake"'), ('engine = "vllm"', 'harness = "fake"')],
)
def test_an_entrys_engine_overrides_a_default_harness_and_the_reverse(default: str, own: str) -> None:
    catalogue = load(f'[defaults]\nquant = "Q8_0"\n{default}\n[[models]]\nid = "m"\n{own}')

    assert catalogue.functions["m"] == Function(id="m", engine=Engine.FAKE, quant="Q8_0")


@pytest.mark.parametrize("key", ["id", "source"])
def test_id_and_source_have_no_default(key: str) -> None:
    assert problems(f'[defaults]\n{key} = "x"')[0].startswith(
        f"models.toml:2: defaults: unknown key '{key}'; did you mean "
    )


# Sources.


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("./tiny.gguf", "/etc/cortex/tiny.gguf"),
        ("/data/tiny.gguf", "/data/tiny.gguf"),
        ("org/repo:tiny.gguf", "org/repo:tiny.gguf"),
        ("", "m"),
    ],
)
def test_only_a_source_that_begins_with_dot_slash_is_relative_to_the_file(source: str, weights: str) -> None:
    catalogue = load(f'[[models]]\nid = "m"\nengine = "fake"\nsource = "{source}"')

    assert catalogue.functions["m"].weights == weights


# Aliases.


def test_an_id_or_alias_resolves_to_its_function() -> None:
    catalogue = load(SEED)

    assert catalogue.resolve("helexa/small") is catalogue.functions["Qwen/Qwen3-8B"]
    assert catalogue.resolve("Qwen/Qwen3-8B") is catalogue.functions["Qwen/Qwen3-8B"]
    assert catalogue.resolve("unknown") is None


def test_an_alias_of_an_alias_resolves_to_the_function() -> None:
    catalogue = load('models = [{ id = "m", engine = "fake" }]\naliases = { a = "b", b = "c", c = "m" }')

    assert catalogue.aliases == {"a": "m", "b": "m", "c": "m"}


def test_an_alias_has_a_substitute_and_so_have_its_own_aliases() -> None:
    catalogue = load(TWO + '[aliases]\na = { use = "m", on_cold = { use = "c", within_s = 2 } }\nb = "a"\nc = "n"')

    assert catalogue.aliases == {"a": "m", "b": "m", "c": "n"}
    assert catalogue.substitutes == {"a": Substitute("n", 2.0), "b": Substitute("n", 2.0)}


def test_the_nearest_names_are_ids_and_aliases() -> None:
    assert load(SEED).nearest("helexa/smal")[0] == "helexa/small"
    assert load(SEED).nearest("qwen3-8b")[0] == "Qwen/Qwen3-8B"


# Problems. Each text begins at line 1.

ONE = '[[models]]\nid = "m"\nengine = "fake"\n'
TWO = ONE + '[[models]]\nid = "n"\nengine = "fake"\n'

PROBLEMS = {
    "not TOML": ("a = = 1", ["models.toml:1: is not TOML: Invalid value (at line 1, column 5)"]),
    "a file that ends too soon": ("a = '''", ["models.toml: is not TOML: Expected \"'''\" (at end of document)"]),
    "an unknown table": (
        ONE + '[alias]\nx = "m"',
        ["models.toml:4: unknown table 'alias'; did you mean 'aliases'?"],
    ),
    "an unknown key at the top": (
        'model = "m"\n' + ONE,
        ["models.toml:1: unknown table 'model'; did you mean 'models'?"],
    ),
    "models as one table": (
        '[models]\nid = "m"',
        ["models.toml:1: models: must be written as [[models]] tables"],
    ),
    "models as a list of words": (
        'models = ["m"]',
        ["models.toml:1: models: must be written as [[models]] tables"],
    ),
    "defaults as a word": ('defaults = "m"', ["models.toml:1: defaults: must be a table: [defaults]"]),
    "aliases as a word": ('aliases = "m"', ["models.toml:1: aliases: must be a table: [aliases]"]),
    "an unknown key": (
        ONE + "idle_after = 3",
        ["models.toml:4: m: unknown key 'idle_after'; did you mean 'idle_after_s'?"],
    ),
    "an unknown key within a small table": (
        '[[models]]\nid = "m"\nengine = "fake"\nsampling = { temprature = 1.0 }\ntemplate = { tool = true }',
        [
            "models.toml:4: m: sampling: unknown key 'temprature'; did you mean 'temperature'?",
            "models.toml:5: m: template: unknown key 'tool'; did you mean 'tools'?",
        ],
    ),
    "an unknown key in the second entry": (
        ONE + '[[models]]\nid = "n"\nengine = "fake"\nvram = 3',
        ["models.toml:7: n: unknown key 'vram'; did you mean 'vram_mb'?"],
    ),
    "an unknown key among the defaults": (
        "[defaults]\nidle = 3",
        ["models.toml:2: defaults: unknown key 'idle'; did you mean 'idle_after_s'?"],
    ),
    "a wrong type": (
        ONE + 'vram_mb = "much"',
        ["models.toml:4: m: vram_mb: Expected `int`, got `str`"],
    ),
    "a wrong type within a list": (
        ONE + 'args = ["--a", 1]',
        ["models.toml:4: m: args: Expected `str`, got `int` - at `$[1]`"],
    ),
    "a truth value for a number": (
        ONE + "queue = true",
        ["models.toml:4: m: queue: Expected `int`, got `bool`"],
    ),
    "a negative number": (ONE + "vram_mb = -1", ["models.toml:4: m: vram_mb: Expected `int` >= 0"]),
    "negative seconds": (
        ONE + "idle_after_s = -0.5",
        ["models.toml:4: m: idle_after_s: Expected `float` >= 0.0"],
    ),
    "no devices": (ONE + "min_devices = 0", ["models.toml:4: m: min_devices: Expected `int` >= 1"]),
    "a number beyond 64 bits": (
        ONE + "vram_mb = 99999999999999999999",
        ["models.toml:4: m: vram_mb: Expected `int` <= 9007199254740992"],
    ),
    "seconds without end": (
        ONE + "idle_after_s = inf",
        ["models.toml:4: m: idle_after_s: Expected `float` <= 1000000000.0"],
    ),
    "min over max": (ONE + "min = 3\nmax = 2", ["models.toml:1: m: min = 3 is more than max = 2"]),
    "a wait for a turn below the least turn": (
        ONE + "turn_wait_s = 10",
        [
            "models.toml:4: m: turn_wait_s = 10 is less than turn_min_s = 15, which every turn lasts: "
            "set turn_wait_s to 15 or more, or to 0 to close no instance in use"
        ],
    ),
    "a least turn above the wait, for all": (
        "[defaults]\nturn_min_s = 90\n" + ONE,
        [
            "models.toml:2: m: turn_wait_s = 60 is less than turn_min_s = 90, which every turn lasts: "
            "set turn_wait_s to 90 or more, or to 0 to close no instance in use"
        ],
    ),
    "a grace above the request clock": (
        ONE + "request_timeout_s = 20\nturn_grace_s = 30",
        [
            "models.toml:5: m: turn_grace_s = 30 is more than request_timeout_s = 20, which ends every request: "
            "set turn_grace_s to that or less"
        ],
    ),
    "a turn of less than no time": (
        ONE + "turn_wait_s = -1",
        ["models.toml:4: m: turn_wait_s: Expected `float` >= 0.0"],
    ),
    "no id": ('[[models]]\nengine = "fake"', ["models.toml:1: models entry 1: has no id"]),
    "an empty id": (
        '[[models]]\nid = ""\nengine = "fake"',
        ["models.toml:2: models entry 1: the id is empty"],
    ),
    "an id that is no string": (
        '[[models]]\nid = 3\nengine = "fake"',
        ["models.toml:2: models entry 1: id: Expected `str`, got `int`"],
    ),
    "an id with a control character": (
        '[[models]]\nid = "a\\tb"\nengine = "fake"',
        ["models.toml:2: a\tb: the id has a control character in it"],
    ),
    "an id declared twice": (
        ONE + '\n[[models]]\nid = "m"\nengine = "vllm"',
        ["models.toml:6: m: is declared twice"],
    ),
    "no engine": (
        '[[models]]\nid = "m"',
        ["models.toml:1: m: has no engine (vllm, llamacpp, command, fake)"],
    ),
    "an unknown engine": (
        '[[models]]\nid = "m"\nengine = "llama.cpp"',
        ["models.toml:3: m: engine: unknown engine 'llama.cpp'; did you mean 'llamacpp'?"],
    ),
    "an unknown harness": (
        '[[models]]\nid = "m"\nharness = "candel"',
        ["models.toml:3: m: unknown harness 'candel'; did you mean 'candle'?"],
    ),
    "engine and harness": (
        ONE + 'harness = "candle"',
        ["models.toml:4: m: has both engine and harness; harness is the older word for engine"],
    ),
    "an alias to nothing": (
        ONE + '[aliases]\n"a" = "n"',
        ["models.toml:5: alias 'a': leads to 'n', which is not in the catalogue"],
    ),
    "an alias to a misspelt id": (
        '[[models]]\nid = "org/model"\nengine = "fake"\n[aliases]\na = "org/modle"',
        ["models.toml:5: alias 'a': leads to 'org/modle', which is not in the catalogue; did you mean 'org/model'?"],
    ),
    "an alias that shadows an id": (
        ONE + '[aliases]\n"m" = "m"',
        ["models.toml:5: alias 'm': has the same name as a function"],
    ),
    "an alias to itself": (
        ONE + '[aliases]\na = "a"',
        ["models.toml:5: alias 'a': leads in a circle: a → a"],
    ),
    "aliases in a circle": (
        ONE + '[aliases]\na = "b"\nb = "a"',
        [
            "models.toml:5: alias 'a': leads in a circle: a → b → a",
            "models.toml:6: alias 'b': leads in a circle: b → a → b",
        ],
    ),
    "an alias into a circle": (
        ONE + '[aliases]\na = "b"\nb = "b"',
        [
            "models.toml:5: alias 'a': leads in a circle: a → b → b",
            "models.toml:6: alias 'b': leads in a circle: b → b",
        ],
    ),
    "an alias of an alias to nothing is one problem": (
        ONE + '[aliases]\na = "b"\nb = "zzz"',
        ["models.toml:6: alias 'b': leads to 'zzz', which is not in the catalogue"],
    ),
    "an alias of a wrong alias is one problem": (
        ONE + '[aliases]\na = "b"\nb = 3',
        ["models.toml:6: alias 'b': must lead to an id in quotes (write aliases with a '.' in quotes)"],
    ),
    "an alias of a wrong function is one problem": (
        ONE + 'queue = -1\n[aliases]\na = "m"',
        ["models.toml:4: m: queue: Expected `int` >= 0"],
    ),
    "an alias with a dot, not in quotes": (
        ONE + '[aliases]\ngpt-4.1 = "m"',
        ["models.toml:5: alias 'gpt-4': must lead to an id in quotes (write aliases with a '.' in quotes)"],
    ),
    "a substitute that is the function itself": (
        ONE + '[aliases]\na = { use = "m", on_cold = { use = "m" } }',
        ["models.toml:5: alias 'a': on_cold: 'm' is the function itself: name another one"],
    ),
    "an alias that is its own substitute": (
        ONE + '[aliases]\na = { use = "m", on_cold = { use = "a" } }',
        ["models.toml:5: alias 'a': on_cold: 'a' has a substitute of its own: name a function"],
    ),
    "a chain of substitutes": (
        TWO + '[aliases]\na = { use = "m", on_cold = { use = "b" } }\nb = { use = "n", on_cold = { use = "m" } }',
        ["models.toml:8: alias 'a': on_cold: 'b' has a substitute of its own: name a function"],
    ),
    "a substitute that is not there": (
        ONE + '[aliases]\na = { use = "m", on_cold = { use = "mm" } }',
        ["models.toml:5: alias 'a': on_cold: 'mm' is not in the catalogue; did you mean 'm'?"],
    ),
    "an unknown key of a substitute, in a table of its own": (
        ONE + '[aliases.a]\nuse = "m"\non_cold = { use = "m", within = 2 }',
        ["models.toml:4: alias 'a': on_cold: unknown key 'within'; did you mean 'within_s'?"],
    ),
    "a substitute without a name": (
        ONE + '[aliases]\na = { use = "m", on_cold = { within_s = 2 } }',
        ["models.toml:5: alias 'a': on_cold: Object missing required field `use`"],
    ),
    "an alias in a table without its function": (
        ONE + '[aliases]\na = { on_cold = { use = "m" } }',
        ['models.toml:5: alias \'a\': has no `use`: write { use = "id", on_cold = { use = "another id" } }'],
    ),
    "an unknown key of an alias": (
        ONE + '[aliases]\na = { use = "m", on_cod = { use = "m" } }',
        ["models.toml:5: alias 'a': unknown key 'on_cod'; did you mean 'on_cold'?"],
    ),
    "an empty alias": (ONE + '[aliases]\n"" = "m"', ["models.toml:5: alias '': is empty"]),
    "a line break that is none to TOML": (
        "# one\u2028line\n" + ONE + "vram = 1",
        ["models.toml:5: m: unknown key 'vram'; did you mean 'vram_mb'?"],
    ),
}


@pytest.mark.parametrize("lines", ["turn_wait_s = 0", "request_timeout_s = 30", "turn_min_s = 0\nturn_wait_s = 1"])
def test_consistent_settings_of_turns_are_accepted(lines: str) -> None:
    assert list(load(ONE + lines).functions) == ["m"]


@pytest.mark.parametrize(("text", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_names_file_line_function_key_and_the_nearest_key(text: str, message: list[str]) -> None:
    assert problems(text) == message


def test_all_problems_are_reported_at_once() -> None:
    message = problems(
        """\
[defaults]
queues = 3
[[models]]
id = "one"
engine = "fke"
vram_mb = -1
[[models]]
harness = "candle"
min_devices = 0
[[models]]
id = "two"
engine = "fake"
argz = []
[aliases]
"two" = "one"
three = "four"
[extra]
"""
    )

    assert message == [
        "models.toml:17: unknown table 'extra'; did you mean 'defaults'?",
        "models.toml:2: defaults: unknown key 'queues'; did you mean 'queue'?",
        "models.toml:5: one: engine: unknown engine 'fke'; did you mean 'fake'?",
        "models.toml:6: one: vram_mb: Expected `int` >= 0",
        "models.toml:7: models entry 2: has no id",
        "models.toml:9: models entry 2: min_devices: Expected `int` >= 1",
        "models.toml:13: two: unknown key 'argz'; did you mean 'args'?",
        "models.toml:15: alias 'two': has the same name as a function",
        "models.toml:16: alias 'three': leads to 'four', which is not in the catalogue",
    ]


def test_the_error_text_lists_all_problems() -> None:
    error = CatalogueError(
        [
            Problem(file="f", line=3, where="m", what="is wrong"),
            Problem(file="f", line=None, where="", what="is worse"),
        ]
    )

    assert str(error) == "f:3: m: is wrong\nf: is worse"


# Notes.


def test_a_plain_catalogue_has_no_notes() -> None:
    assert notes(load(ONE)) == []


def test_a_native_dialect_that_the_server_lacks_is_noted() -> None:
    (note,) = notes(load('[[models]]\nid = "m"\nengine = "fake"\nnative = ["messages"]'))

    assert note == "m: native = 'messages' is kept, but its server does not speak it: it is translated"


# Arbitrary texts.


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


@pytest.mark.parametrize(
    ("key", "written", "path"),
    [
        ("chat_template", "/srv/t.jinja", "/srv/t.jinja"),
        ("chat_template", "~/t.jinja", "~/t.jinja"),
        ("chat_template", "./my t.jinja", "/etc/cortex/my t.jinja"),
        ("chat_template", "../t.jinja", "/etc/cortex/../t.jinja"),
        ("chat_template", "t.jinja", "/etc/cortex/t.jinja"),
        ("chat_template", "{{ messages }}", "{{ messages }}"),
        ("mmproj", "./m.gguf", "/etc/cortex/m.gguf"),
        ("mmproj", "m.gguf", "m.gguf"),
        ("source", "./m.gguf", "/etc/cortex/m.gguf"),
        ("source", "../m.gguf", "/etc/cortex/../m.gguf"),
        ("source", "~/m.gguf", "~/m.gguf"),
        ("source", "org/m", "org/m"),
    ],
)
def test_every_path_of_an_entry_follows_one_rule(key: str, written: str, path: str) -> None:
    text = f'[[models]]\nid = "org/m"\nengine = "llamacpp"\n{key} = {json.dumps(written)}\n'

    function = read(text, file="models.toml", folder="/etc/cortex").functions["org/m"]

    assert getattr(function, key) == path


def test_an_encoder_without_a_path_is_beside_the_catalogue_where_its_model_is_a_path() -> None:
    text = '[[models]]\nid = "m"\nengine = "llamacpp"\nsource = "~/m.gguf"\nmmproj = "e.gguf"\n'

    assert read(text, file="models.toml", folder="/etc").functions["m"].mmproj == "/etc/e.gguf"


@pytest.mark.parametrize("source", ["models/x.gguf", "x.gguf", "a/b/c.safetensors"])
def test_a_source_that_looks_like_a_file_is_noted_with_the_way_to_write_it(source: str) -> None:
    text = f'[[models]]\nid = "m"\nengine = "llamacpp"\nsource = "{source}"\n'

    (note,) = notes(read(text, file="models.toml", folder="/etc"))

    assert f"write ./{source} for one beside models.toml" in note


def test_an_argument_that_cannot_work_is_a_problem_with_its_line() -> None:
    text = '[[models]]\nid = "m"\nengine = "llamacpp"\nargs = ["--port", "1", "-np 2"]\n'

    with pytest.raises(CatalogueError) as refused:
        read(text, file="models.toml", folder="/etc", strict=True)

    assert list(read(text, file="models.toml", folder="/etc").functions) == ["m"]
    assert [str(p).startswith("models.toml:4: m: ") for p in refused.value.problems] == [True, True]
