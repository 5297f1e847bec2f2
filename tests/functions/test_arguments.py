"""Arguments that cannot work are problems of a catalogue."""

from typing import Any

import pytest

from cortex.functions.arguments import problems
from cortex.functions.spec import Engine, Function

COMMAND = ("serve", "--port", "{port}", "--key={key_file}", "--quiet")


def whats(engine: Engine, *args: str, **rest: Any) -> list[str]:
    """Return what is wrong with a function's arguments."""
    return [what for _, what in problems(Function(id="m", engine=engine, args=args, **rest))]


@pytest.mark.parametrize(
    ("engine", "args", "named"),
    [
        (Engine.LLAMACPP, ("--port", "8080"), "--port"),
        (Engine.LLAMACPP, ("--host=0.0.0.0",), "--host"),
        (Engine.LLAMACPP, ("-m", "/x.gguf"), "-m"),
        (Engine.LLAMACPP, ("--model_alias", "x"), "--model-alias"),
        (Engine.LLAMACPP, ("--api-key", "x"), "--api-key"),
        (Engine.VLLM, ("--model", "x"), "--model"),
        (Engine.VLLM, ("--served_model_name=x",), "--served-model-name"),
        (Engine.VLLM, ("-tp", "2"), "-tp"),
        (Engine.VLLM, ("--gpu-memory-utilization", "0.9"), "--gpu-memory-utilization"),
    ],
)
def test_what_cortex_gives_an_engine_is_a_problem_with_its_name(
    engine: Engine, args: tuple[str, ...], named: str
) -> None:
    (what,) = whats(engine, *args)

    assert what.startswith(f"cortex gives {named} itself: leave it out; ")


@pytest.mark.parametrize("args", [("--port", "5"), ("--key=/x",)])
def test_what_a_command_has_a_place_for_is_a_problem(args: tuple[str, ...]) -> None:
    assert len(whats(Engine.COMMAND, *args, command=COMMAND)) == 1


@pytest.mark.parametrize(
    ("engine", "args", "keys"),
    [
        (Engine.LLAMACPP, ("-c", "4096"), {"context": 2048}),
        (Engine.LLAMACPP, ("--mmproj", "x"), {"mmproj": "y"}),
        (Engine.LLAMACPP, ("--embeddings",), {"task": "embed"}),
        (Engine.VLLM, ("--max-model-len=5",), {"context": 2048}),
        (Engine.VLLM, ("--tool-call-parser", "hermes"), {"tool_parser": "hermes"}),
    ],
)
def test_an_option_is_a_problem_where_the_key_that_leads_to_it_is_set_too(
    engine: Engine, args: tuple[str, ...], keys: dict[str, Any]
) -> None:
    (what,) = whats(engine, *args, **keys)

    assert f"from `{next(iter(keys))}`" in what
    assert whats(engine, *args) == []


@pytest.mark.parametrize("word", ["--ctx-size 8192", "-np 4", "--flag\tvalue"])
@pytest.mark.parametrize("engine", [Engine.LLAMACPP, Engine.VLLM, Engine.COMMAND])
def test_two_words_in_one_argument_are_a_problem_with_the_two(engine: Engine, word: str) -> None:
    (what,) = whats(engine, word)
    first, second = word.split()

    assert what.endswith(f'is one argument: write "{first}", "{second}"')


@pytest.mark.parametrize(
    "args",
    [
        ("--parallel", "2"),
        ("--cache-ram", "0"),
        ("--n-gpu-layers", "10"),
        ("--override-kv", "a=str:two words"),
        ("--flag=two words",),
        ("a prompt - with a dash",),
        ("-1 2",),
    ],
)
def test_arguments_that_work_are_no_problem(args: tuple[str, ...]) -> None:
    assert whats(Engine.LLAMACPP, *args) == []


def test_the_fake_engine_takes_any_argument() -> None:
    assert whats(Engine.FAKE, "--port", "5", "--answer", "-x y") == []
