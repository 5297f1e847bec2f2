"""Adapters on a host: which fit their base, and which one a worker ended of."""

import json
from pathlib import Path

import pytest

from cortex.functions.spec import Adapter, Engine, Function
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.weights.adapters import excess_rank, problem_of, rank_of, with_local_adapters, without_failed
from cortex.platform.weights.demo_model import write_bigram
from cortex.platform.weights.hub import WeightsUnavailable
from tests.support.lora import write_lora

LLAMA = Function(id="base", engine=Engine.LLAMACPP)
PATHS = {"a": "/a.gguf", "ab": "/a.gguf.b", "same": "/a.gguf.b"}
HERE = LocalWeights("/m.gguf", 10, adapters=PATHS, adapter_problems={"c": "missing"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_bigram(path, "One two. One three.", name="m")
    return path


def test_a_lora_of_the_models_architecture_fits(tmp_path: Path, model: Path) -> None:
    assert problem_of(LLAMA, write_lora(tmp_path / "a.gguf", " night"), model) == ""


def test_a_file_that_is_not_a_lora_of_this_base_is_an_error(tmp_path: Path, model: Path) -> None:
    other = write_lora(tmp_path / "o.gguf", " night", architecture="gpt2")
    text = tmp_path / "t.gguf"
    text.write_text("no GGUF")

    assert problem_of(LLAMA, other, model) == "o.gguf is for another base: for gpt2, and model.gguf is llama"
    assert problem_of(LLAMA, model, model) == "model.gguf is not a LoRA adapter: its general.type is 'model'"
    assert "t.gguf cannot be read" in problem_of(LLAMA, text, model)
    assert "none.gguf cannot be read" in problem_of(LLAMA, tmp_path / "none.gguf", model)


@pytest.mark.parametrize(
    ("base", "source", "fits"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-8B", "someone/qwen3-8b-AWQ", True),
        ("unsloth/Qwen3-8B-bnb-4bit", "Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B", False),
        ("/home/me/models/x", "Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-8B", "/srv/models/x", True),
        ("", "Qwen/Qwen3-8B", True),
    ],
)
def test_the_configuration_of_a_folder_names_its_base(tmp_path: Path, base: str, source: str, fits: bool) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))

    problem = problem_of(Function(id="f", engine=Engine.VLLM, source=source), tmp_path, Path("/m"))

    assert (problem == "") is fits
    assert fits or problem == "the adapter is for another base: for 'Qwen/Qwen3-4B', and this is 'Qwen/Qwen3-8B'"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"peft_type": "IA3"}', "is not a LoRA adapter: its peft_type is 'IA3'"),
        (b"[", "has no readable adapter_config.json"),
        (b"[]", "has no readable adapter_config.json"),
        (None, "has no readable adapter_config.json"),
    ],
)
def test_a_folder_without_a_lora_is_an_error(tmp_path: Path, content: bytes | None, what: str) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_bytes(content)

    assert what in problem_of(Function(id="f", engine=Engine.VLLM, source="org/m"), tmp_path, Path("/m"))


async def rank(adapter: Path) -> int:
    return 8


async def test_adapters_are_on_the_host_or_to_be_fetched_or_have_a_problem() -> None:
    function = Function(
        id="base",
        engine=Engine.LLAMACPP,
        adapters=tuple(Adapter(n, f"org/{n}") for n in ("here", "away", "lost", "odd")),
    )

    async def find(weights: Function) -> LocalWeights | None:
        if weights.id == "lost":
            raise WeightsUnavailable("it is private")
        return None if weights.id == "away" else LocalWeights(f"/{weights.id}", 3)

    async def check(adapter: Path, model: Path) -> str:
        return "does not fit" if adapter.name == "odd" else ""

    local, missing = await with_local_adapters(function, LocalWeights("/m", 10), find, check, rank)

    assert (local.adapters, local.size_mb) == ({"here": "/here"}, 13)
    assert local.adapter_problems == {"lost": "it is private", "odd": "does not fit"}
    assert [f.weights for f in missing] == ["org/away"]


@pytest.mark.parametrize(("names", "highest"), [(("here",), 8), (("here", "away"), 64), (("lost",), 64)])
async def test_an_engine_that_loads_adapters_while_it_runs_waits_for_none(names: tuple[str, ...], highest: int) -> None:
    function = Function(id="base", engine=Engine.VLLM, adapters=tuple(Adapter(n, f"org/{n}") for n in names))

    async def find(weights: Function) -> LocalWeights | None:
        if weights.id == "lost":
            raise WeightsUnavailable("it is private")
        return None if weights.id == "away" else LocalWeights("/here", 3)

    async def check(adapter: Path, model: Path) -> str:
        return ""

    local, missing = await with_local_adapters(function, LocalWeights("/m", 10), find, check, rank)

    assert (missing, local.adapter_rank) == ([], highest)


@pytest.mark.parametrize(
    ("config", "highest"),
    [
        ({"r": 8}, 8),
        ({"r": 8, "rank_pattern": {"q_proj": 32}}, 32),
        ({"r": "8"}, 1),
        ({}, 1),
        ({"r": 8, "rank_pattern": ["q"]}, 8),
    ],
)
def test_the_rank_of_an_adapter_is_the_highest_of_its_modules(
    tmp_path: Path, config: dict[str, object], highest: int
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    assert rank_of(tmp_path) == highest
    assert rank_of(tmp_path / "adapter_config.json") == 1


def test_an_instance_takes_no_adapter_of_a_higher_rank_than_it_was_started_for() -> None:
    function, local = Function(id="base", engine=Engine.VLLM), LocalWeights("/m", 1, adapter_rank=20)

    assert excess_rank(function, local, 32) == ""
    assert excess_rank(function, local, 33).startswith("its rank is 33, and the instance was started for at most 32")


def test_a_start_that_failed_to_load_an_adapter_is_repeated_without_it() -> None:
    line = "0.07 E cmn  common_init_: failed to load lora adapter '/a.gguf.b'"

    again = without_failed(HERE, ["llama_model_load", line, "exiting due to model loading error"])

    assert again is not None
    assert again.adapters == {"a": "/a.gguf"}
    assert again.adapter_problems == {
        "c": "missing",
        "ab": "the engine cannot load the adapter a.gguf.b: its log has the reason",
        "same": "the engine cannot load the adapter a.gguf.b: its log has the reason",
    }
    assert without_failed(HERE, ["out of memory", "/a.gguf"]) is None
