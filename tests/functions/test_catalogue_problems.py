"""Problems of a catalogue, with their line and the nearest key."""

import pytest

import tests.support  # noqa: F401
from cortex.functions.catalogue import CatalogueError, Problem
from tests.functions.catalogue_files import ONE, TWO, load, problems

# Each text begins at line 1.


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
    "the name at a program for an engine of cortex": (
        ONE + 'served_name = "tts-1"',
        ['models.toml:4: m: served_name is for engine = "command", not "fake"'],
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
        ["models.toml:5: alias 'a': on_cold: 'a' is the alias itself: name another function"],
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


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ('engine = "vllm"', "vLLM does not save prompts when a worker leaves"),
        ('engine = "fake"', "only llama.cpp's own server saves conversations"),
        ('engine = "llamacpp"\nserver = "llama_cpp.server"', "only llama.cpp's own server saves conversations"),
        ('engine = "llamacpp"\ntask = "embed"', 'task = "embed" has no conversations'),
        ('engine = "llamacpp"\nmmproj = "/v.gguf"', "saves no conversations with a vision encoder"),
        ('engine = "llamacpp"\nargs = ["--mmproj-url=https://a/v"]', "saves no conversations with a vision encoder"),
        ('engine = "llamacpp"\nargs = ["-np", "2"]', "needs a known number of slots"),
    ],
)
def test_keep_context_names_what_it_does_not_work_with(keys: str, why: str) -> None:
    (problem,) = problems(f'[[models]]\nid = "m"\nsource = "/m.gguf"\nkeep_context = true\n{keys}')

    assert problem.startswith("models.toml:4: m: keep_context: ")
    assert why in problem
