"""How workers are started: golden argv, and nothing a catalogue says can become anything but one argument."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import tests.support  # noqa: F401
from cortex.functions.launch import CannotLaunch, Launch, Slot, launch
from cortex.functions.spec import Engine, Function

SLOT = Slot(
    host="127.0.0.1",
    port=20001,
    weights="/cache/model.gguf",
    key="secret-of-the-worker",
    tools={"llama-server": ("/usr/bin/llama-server",), "fake": ("python", "-m", "cortex.platform.fake_engine")},
)
NASTY = ["; rm -rf /", "$(reboot)", "`id`", "a b", "--api-key", "-h", "'\"", "*", "a\nb"]


def of(engine: Engine, **rest: Any) -> Function:
    return Function(id="org/model", engine=engine, **rest)


def test_llamacpp_is_started_like_this() -> None:
    assert launch(of(Engine.LLAMACPP), SLOT) == Launch(
        argv=(
            "/usr/bin/llama-server",
            "--model", "/cache/model.gguf",
            "--alias", "org/model",
            "--host", "127.0.0.1",
            "--port", "20001",
            "--parallel", "8",
            "--cache-ram", "256",
        ),
        env={"LLAMA_API_KEY": "secret-of-the-worker"},
        health_path="/health",
    )  # fmt: skip


def test_the_context_is_what_one_request_may_use() -> None:
    argv = launch(of(Engine.LLAMACPP, context=4096, target_concurrency=4), SLOT).argv

    assert argv[argv.index("--parallel") + 1] == "4"
    assert argv[argv.index("--ctx-size") + 1] == "16384"


def test_arguments_of_the_operator_come_last_and_so_prevail() -> None:
    argv = launch(of(Engine.LLAMACPP, context=512, args=("--parallel", "2")), SLOT).argv

    assert argv[-2:] == ("--parallel", "2")


def test_the_fake_engine_is_started_like_this() -> None:
    assert launch(of(Engine.FAKE, args=("--load-s", "2")), SLOT) == Launch(
        argv=(
            "python", "-m", "cortex.platform.fake_engine",
            "--model", "org/model",
            "--host", "127.0.0.1",
            "--port", "20001",
            "--load-s", "2",
        ),
        env={"CORTEX_WORKER_KEY": "secret-of-the-worker"},
    )  # fmt: skip


def test_the_fake_engine_declares_its_memory_in_a_file_of_its_own() -> None:
    started = launch(of(Engine.FAKE), replace(SLOT, scratch="/run/cortex/one.memory"))

    assert started.env["CORTEX_FAKE_MEMORY_FILE"] == "/run/cortex/one.memory"


@pytest.mark.parametrize("engine", [Engine.LLAMACPP, Engine.FAKE])
def test_devices_are_named_by_uuid(engine: Engine) -> None:
    env = launch(of(engine), replace(SLOT, devices=("GPU-1b", "GPU-0a"))).env

    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1b,GPU-0a"


@pytest.mark.parametrize("engine", [Engine.LLAMACPP, Engine.FAKE])
def test_a_host_without_gpus_hides_none(engine: Engine) -> None:
    assert "CUDA_VISIBLE_DEVICES" not in launch(of(engine), SLOT).env


@pytest.mark.parametrize("engine", [Engine.LLAMACPP, Engine.FAKE])
def test_the_key_is_in_the_environment_and_never_in_the_argv(engine: Engine) -> None:
    started = launch(of(engine, args=("--verbose",), env={"A": "b"}), SLOT)

    assert SLOT.key in started.env.values()
    assert not [word for word in started.argv if SLOT.key in word]


@pytest.mark.parametrize(
    ("engine", "variable"), [(Engine.LLAMACPP, "LLAMA_API_KEY"), (Engine.FAKE, "CORTEX_WORKER_KEY")]
)
def test_a_catalogue_cannot_set_the_key(engine: Engine, variable: str) -> None:
    started = launch(of(engine, env={variable: "known-to-all"}), SLOT)

    assert started.env[variable] == SLOT.key


@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.COMMAND])
def test_an_engine_that_is_not_there_is_named(engine: Engine) -> None:
    with pytest.raises(CannotLaunch, match=f"engine '{engine}'"):
        launch(of(engine), SLOT)


@pytest.mark.parametrize(("engine", "tool"), [(Engine.LLAMACPP, "llama-server"), (Engine.FAKE, "fake")])
def test_a_tool_the_host_lacks_is_named(engine: Engine, tool: str) -> None:
    with pytest.raises(CannotLaunch, match=f"no '{tool}' on this host"):
        launch(of(engine), replace(SLOT, tools={}))


@given(st.sampled_from(NASTY) | st.text(max_size=20), st.sampled_from(NASTY), st.sampled_from(NASTY))
def test_whatever_a_name_or_path_holds_it_stays_one_argument(name: str, weights: str, arg: str) -> None:
    function = Function(id=name, engine=Engine.LLAMACPP, args=(arg,))

    argv = launch(function, replace(SLOT, weights=weights)).argv

    assert len(argv) == 14
    assert (argv[2], argv[4], argv[13]) == (weights, name, arg)
