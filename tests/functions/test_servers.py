"""The table of servers, and the abilities of a function."""

import gc
from typing import Any

import pytest

from cortex.functions.catalogue import CatalogueError, read
from cortex.functions.launch import llamacpp
from cortex.functions.servers import SERVERS, max_concurrency, server_of
from cortex.functions.spec import Engine, Function

EVERYTHING = {"chat", "completions", "embeddings", "rerank"}


def of(engine: Engine, **rest: Any) -> Function:
    return Function(id="org/model", engine=engine, **rest)


def test_every_engine_and_every_server_of_llama_cpp_has_a_row() -> None:
    assert set(SERVERS) == {str(e) for e in Engine if e is not Engine.LLAMACPP} | set(llamacpp.ORDER)


@pytest.mark.parametrize(
    ("function", "serves"),
    [
        (of(Engine.VLLM), EVERYTHING),  # it depends on the model
        (of(Engine.VLLM, task="generate"), {"chat", "completions"}),
        (of(Engine.VLLM, task="embed"), {"embeddings"}),
        (of(Engine.LLAMACPP), {"chat", "completions"}),
        (of(Engine.LLAMACPP, task="embed"), {"embeddings"}),
        (of(Engine.LLAMACPP, task="rerank"), {"rerank"}),
        (of(Engine.LLAMACPP, task="rerank", server="llama_cpp.server"), set()),
        (of(Engine.COMMAND), {"chat", "completions"}),
        (of(Engine.COMMAND, dialects=("embeddings",)), {"embeddings"}),
        (of(Engine.COMMAND, task="embed"), {"embeddings"}),
        (of(Engine.COMMAND, task="speech"), {"speech"}),
        (of(Engine.COMMAND, task="transcribe", dialects=("transcriptions",)), {"transcriptions"}),
        (of(Engine.VLLM, task="transcribe"), {"transcriptions", "translations"}),
        (of(Engine.LLAMACPP, task="transcribe"), {"transcriptions"}),
        (of(Engine.VLLM, task="image"), set()),
        (of(Engine.FAKE, task="image"), {"images", "image_edits"}),
        (of(Engine.FAKE), EVERYTHING),
    ],
)
def test_a_task_restricts_the_dialects_of_the_engine(function: Function, serves: set[str]) -> None:
    assert server_of(function).dialects == serves


def test_the_running_server_overrides_the_default_one() -> None:
    assert server_of(of(Engine.LLAMACPP)).tools
    assert not server_of(of(Engine.LLAMACPP), "llama_cpp.server").tools
    assert server_of(of(Engine.LLAMACPP, server="llama_cpp.server")).parallel == 1


@pytest.mark.parametrize(
    ("function", "limit"),
    [
        (of(Engine.LLAMACPP, target_concurrency=3), 3),
        (of(Engine.LLAMACPP, server="llama_cpp.server", target_concurrency=3), 1),
        (of(Engine.LLAMACPP, target_concurrency=3, args=("--parallel", "9")), None),
        (of(Engine.LLAMACPP, target_concurrency=3, args=("-np=9",)), None),
        (of(Engine.VLLM, target_concurrency=3), None),
        (of(Engine.COMMAND, target_concurrency=3), None),
    ],
)
def test_the_concurrency_limit_is_known_where_cortex_sets_it(function: Function, limit: int | None) -> None:
    assert max_concurrency(function, server_of(function)) == limit


@pytest.mark.parametrize(
    "args", [("--shape", "llama"), ("--tps", "5", "--shape=llama"), ("--shape", "vllm", "--shape", "llama")]
)
def test_the_fake_engine_in_the_shape_of_llama_cpp_has_its_traits(args: tuple[str, ...]) -> None:
    server = server_of(Function(id="f", engine=Engine.FAKE, args=args))

    assert (server.named_tool_choice, server.names_stop) == (False, False)
    vllm = server_of(Function(id="f", engine=Engine.FAKE, args=(*args, "--shape", "vllm")))
    assert vllm == server_of(Function(id="f", engine=Engine.FAKE))


@pytest.mark.parametrize(
    ("keys", "instead"),
    [
        ('engine = "vllm"\ntask = "speech"', 'write engine = "command"'),
        ('engine = "llamacpp"\ntask = "image"', 'write engine = "command"'),
        (
            'engine = "llamacpp"\nserver = "llama_cpp.server"\ntask = "transcribe"',
            'write engine = "vllm" or "llamacpp" or "command"',
        ),
    ],
)
def test_a_task_that_the_engine_cannot_do_is_a_problem_with_its_line_and_what_can(keys: str, instead: str) -> None:
    text = f'[[models]]\nid = "m"\n{keys}\n'

    with pytest.raises(CatalogueError) as refused:
        read(text, file="models.toml", folder="/")

    (problem,) = refused.value.problems
    assert problem.line == text.splitlines().index(keys.splitlines()[-1]) + 1
    assert instead in str(problem)


def test_functions_of_a_kind_share_their_server_and_no_collection_searches_either() -> None:
    functions = [of(engine, args=("--a", "b"), env={"C": "d"}) for engine in (Engine.VLLM, Engine.COMMAND)]
    same = [of(f.engine, args=("--e",)) for f in functions]

    assert [server_of(f) is server_of(s) for f, s in zip(functions, same, strict=True)] == [True, True]
    assert not any(map(gc.is_tracked, (*functions, *map(server_of, functions))))
