"""The catalogue: valid texts, and problems with their line and the nearest key."""

import json

import pytest

import tests.support  # noqa: F401
from cortex.functions.catalogue import Catalogue, CatalogueError, Substitute, notes, read
from cortex.functions.spec import Engine, Function
from tests.functions.catalogue_files import ONE, TWO, load, problems

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


# Notes.


def test_a_plain_catalogue_has_no_notes() -> None:
    assert notes(load(ONE)) == []


def test_a_native_dialect_that_the_server_lacks_is_noted() -> None:
    (note,) = notes(load('[[models]]\nid = "m"\nengine = "fake"\nnative = ["messages"]'))

    assert note == "m: native = 'messages' is kept, but its server does not speak it: it is translated"


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
