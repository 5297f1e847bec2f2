"""Commands of workers, compared as a whole; any value of a catalogue stays one argument."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import tests.support  # noqa: F401
from cortex.functions.launch import CannotLaunch, Launch, LaunchContext, launch, vllm
from cortex.functions.spec import Adapter, Engine, Function

CONTEXT = LaunchContext(
    host="127.0.0.1",
    port=20001,
    weights="/cache/model.gguf",
    key="secret-of-the-worker",
    key_file="/run/cortex/one.key",
    tools={
        "llama-server": ("/usr/bin/llama-server",),
        "xllamacpp": ("python", "-m", "cortex.platform.workers.llama_server"),
        "llama_cpp.server": ("/opt/py/bin/python", "-m", "llama_cpp.server"),
        "vllm": ("/opt/vllm/bin/vllm", "serve"),
        "fake": ("python", "-m", "cortex.platform.fake_engine"),
    },
)
ON_GPU = replace(
    CONTEXT,
    weights="/cache/model",
    devices=("GPU-1b",),
    device_kind="gpu",
    device_total_mb=24_576,
    memory_mb=8000,
    weights_mb=4000,
    cache="/var/cache/cortex/engines/vllm-0.32.0/nvidia-rtx",
    engine_modules="/opt/cortex/engine_modules",
)
VARIABLE = {
    Engine.LLAMACPP: "LLAMA_API_KEY",
    Engine.COMMAND: "CORTEX_WORKER_KEY",
    Engine.FAKE: "CORTEX_WORKER_KEY",
}
ENGINES = list(Engine)
HOSTILE = ["; rm -rf /", "$(reboot)", "`id`", "a b", "--api-key", "-h", "'\"", "*", "a\nb"]
FREE = [word for word in HOSTILE if word != "--api-key"]  # which cortex gives itself


def of(engine: Engine, **rest: Any) -> Function:
    return Function(id="org/model", engine=engine, **rest)


def test_the_command_of_llamacpp() -> None:
    assert launch(of(Engine.LLAMACPP), CONTEXT) == Launch(
        argv=(
            "/usr/bin/llama-server",
            "--model", "/cache/model.gguf",
            "--alias", "org/model",
            "--host", "127.0.0.1",
            "--port", "20001",
            "--parallel", "8",
            "--cache-ram", "0",
            "--metrics",
            "--slots",
        ),
        env={"LLAMA_API_KEY": "secret-of-the-worker"},
        health_path="/health",
        server="llama-server",
    )  # fmt: skip


def test_the_context_is_the_limit_of_one_request() -> None:
    argv = launch(of(Engine.LLAMACPP, context=4096, target_concurrency=4), CONTEXT).argv

    assert argv[argv.index("--parallel") + 1] == "4"
    assert argv[argv.index("--ctx-size") + 1] == "16384"


def test_arguments_of_the_operator_come_last() -> None:
    argv = launch(of(Engine.LLAMACPP, context=512, args=("--parallel", "2")), CONTEXT).argv

    assert argv[-2:] == ("--parallel", "2")


def test_the_command_of_the_fake_engine() -> None:
    assert launch(of(Engine.FAKE, args=("--load-s", "2")), CONTEXT) == Launch(
        argv=(
            "python", "-m", "cortex.platform.fake_engine",
            "--model", "org/model",
            "--host", "127.0.0.1",
            "--port", "20001",
            "--load-s", "2",
        ),
        env={"CORTEX_WORKER_KEY": "secret-of-the-worker"},
        server="fake",
    )  # fmt: skip


def test_the_fake_engine_gets_a_file_for_its_memory() -> None:
    result = launch(of(Engine.FAKE), replace(CONTEXT, scratch="/run/cortex/one.memory"))

    assert result.env["CORTEX_FAKE_MEMORY_FILE"] == "/run/cortex/one.memory"


@pytest.mark.parametrize("engine", ENGINES)
def test_devices_are_passed_by_uuid(engine: Engine) -> None:
    env = launch(of(engine), replace(CONTEXT, devices=("GPU-1b", "GPU-0a"))).env

    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1b,GPU-0a"


@pytest.mark.parametrize("engine", ENGINES)
def test_without_gpus_the_visible_devices_are_not_set(engine: Engine) -> None:
    assert "CUDA_VISIBLE_DEVICES" not in launch(of(engine), CONTEXT).env


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("server", ["", "xllamacpp", "llama_cpp.server"])
def test_the_key_is_in_the_environment_or_a_private_file_and_never_in_the_argv(engine: Engine, server: Any) -> None:
    server = server if engine is Engine.LLAMACPP else ""
    command = ("serve", "{port}", "{model}", "{key_file}")
    result = launch(of(engine, args=("--verbose",), env={"A": "b"}, server=server, command=command), CONTEXT)

    assert CONTEXT.key in (*result.env.values(), *result.files.values())
    assert not [word for word in result.argv if CONTEXT.key in word]


@pytest.mark.parametrize("engine", list(VARIABLE))
def test_a_catalogue_cannot_set_the_key(engine: Engine) -> None:
    result = launch(of(engine, env={VARIABLE[engine]: "known-to-all"}), CONTEXT)

    assert result.env[VARIABLE[engine]] == CONTEXT.key


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (of(Engine.VLLM), "no 'vllm' on this host"),
        (of(Engine.FAKE), "no 'fake' on this host"),
        (of(Engine.LLAMACPP, server="xllamacpp"), "no 'xllamacpp' on this host"),
        (of(Engine.LLAMACPP), "no server of llama.cpp on this host"),
    ],
)
def test_a_missing_tool_is_an_error_with_its_name(function: Function, what: str) -> None:
    with pytest.raises(CannotLaunch, match=what):
        launch(function, replace(CONTEXT, tools={}))


# llama.cpp.


def test_a_spec_can_select_one_of_llama_cpps_servers() -> None:
    result = launch(of(Engine.LLAMACPP, server="xllamacpp"), CONTEXT)

    assert (result.argv[:3], result.server) == (("python", "-m", "cortex.platform.workers.llama_server"), "xllamacpp")


def test_by_default_the_first_installed_server_is_used() -> None:
    tools = {k: v for k, v in CONTEXT.tools.items() if k != "llama-server"}

    assert launch(of(Engine.LLAMACPP), replace(CONTEXT, tools=tools)).server == "xllamacpp"


def test_the_command_of_llama_cpp_python() -> None:
    assert launch(of(Engine.LLAMACPP, server="llama_cpp.server", context=2048), CONTEXT) == Launch(
        argv=(
            "/opt/py/bin/python", "-m", "llama_cpp.server",
            "--model", "/cache/model.gguf",
            "--model_alias", "org/model",
            "--host", "127.0.0.1",
            "--port", "20001",
            "--interrupt_requests", "False",
            "--n_ctx", "2048",
        ),
        env={"API_KEY": "secret-of-the-worker", "HOST": "127.0.0.1", "PORT": "20001"},
        health_path="/v1/models",
        server="llama_cpp.server",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("embed", ("--embeddings", "--batch-size", "512", "--ubatch-size", "512")),
        ("rerank", ("--rerank", "--batch-size", "512", "--ubatch-size", "512")),
        ("generate", ()),
        ("auto", ()),
    ],
)
def test_the_flags_of_llama_cpp_depend_on_the_task(task: Any, flags: tuple[str, ...]) -> None:
    argv = launch(of(Engine.LLAMACPP, task=task, context=512), CONTEXT).argv

    assert argv[argv.index("--ctx-size") + 2 :] == flags


def test_chat_template_and_mmproj_are_passed_to_llama_cpp() -> None:
    argv = launch(of(Engine.LLAMACPP, chat_template="/srv/chat.jinja", mmproj="/srv/mmproj.gguf"), CONTEXT).argv

    assert argv[-4:] == ("--mmproj", "/srv/mmproj.gguf", "--chat-template-file", "/srv/chat.jinja")


@pytest.mark.parametrize(
    ("memory_mb", "layers", "gpus", "expected"),
    [
        (8000, 32, 1, "999"),  # all of it fits
        (8000, 0, 1, "999"),  # unknown
        (2000, 32, 1, "13"),  # 2000 of 4000 × 1.15, and 32 layers
        (2000, 32, 2, "999"),  # on two devices it fits
        (1, 32, 1, "0"),
    ],
)
def test_the_gpu_gets_as_many_layers_as_the_placed_memory_holds(
    memory_mb: int, layers: int, gpus: int, expected: str
) -> None:
    devices = tuple(f"GPU-{n}" for n in range(gpus))
    context = replace(ON_GPU, memory_mb=memory_mb, layers=layers, devices=devices)

    argv = launch(of(Engine.LLAMACPP), context).argv

    assert argv[argv.index("--n-gpu-layers") + 1] == expected


# vLLM.


def test_the_command_of_vllm() -> None:
    function = of(Engine.VLLM, context=8192, min_devices=2, dtype="bfloat16", quant="FP8", args=("--seed", "1"))

    assert launch(function, replace(ON_GPU, devices=("GPU-1b", "GPU-0a"))) == Launch(
        argv=(
            "/opt/vllm/bin/vllm", "serve", "/cache/model",
            "--served-model-name", "org/model",
            "--host", "127.0.0.1",
            "--port", "20001",
            "--gpu-memory-utilization", "0.2369",
            "--tensor-parallel-size", "2",
            "--max-model-len", "8192",
            "--dtype", "bfloat16",
            "--quantization", "fp8",
            "--allowed-media-domains", "media.cortex.invalid",
            "--middleware", "cortex_key_check.RequireKey",
            "--seed", "1",
        ),
        env={
            "VLLM_CACHE_ROOT": "/var/cache/cortex/engines/vllm-0.32.0/nvidia-rtx/vllm",
            "TRITON_CACHE_DIR": "/var/cache/cortex/engines/vllm-0.32.0/nvidia-rtx/triton",
            "TORCHINDUCTOR_CACHE_DIR": "/var/cache/cortex/engines/vllm-0.32.0/nvidia-rtx/inductor",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "CUDA_VISIBLE_DEVICES": "GPU-1b,GPU-0a",
            "PYTHONPATH": "/opt/cortex/engine_modules",
            "CORTEX_WORKER_KEY_FILE": "/run/cortex/one.key",
            "VLLM_SERVER_DEV_MODE": "0",
        },
        server="vllm",
        files={"/run/cortex/one.key": "secret-of-the-worker"},
        compiles="full",
    )  # fmt: skip


def test_vllm_reads_its_key_from_a_file_and_has_no_variable_that_differs_between_instances() -> None:
    """vLLM hashes its variables into the key of its compile cache."""
    function = of(Engine.VLLM, env={"VLLM_API_KEY": "known-to-all", "CORTEX_WORKER_KEY_FILE": "/etc/known-to-all"})
    one, two = (
        launch(function, replace(ON_GPU, key=key, key_file=f"/run/{key}.key", port=port, scratch=f"/run/{key}"))
        for key, port in (("first", 20001), ("second", 20002))
    )

    assert one.files == {"/run/first.key": "first"}
    assert {name for name in one.env if one.env[name] != two.env[name]} == {"CORTEX_WORKER_KEY_FILE"}
    assert one.env.keys() == two.env.keys()
    assert "VLLM_API_KEY" not in one.env


def test_a_functions_pythonpath_follows_that_of_the_key_check() -> None:
    env = launch(of(Engine.VLLM, env={"PYTHONPATH": "/srv/mine"}), ON_GPU).env

    assert env["PYTHONPATH"] == "/opt/cortex/engine_modules:/srv/mine"


def test_a_build_without_a_working_script_runs_as_a_module() -> None:
    module = ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")

    argv = launch(of(Engine.VLLM), replace(ON_GPU, tools={"vllm": module})).argv

    assert argv[:5] == (*module, "--model", "/cache/model")
    assert after("--middleware", argv) == "cortex_key_check.RequireKey"


@pytest.mark.parametrize(
    ("memory_mb", "total_mb", "expected"),
    [(8000, 24_576, "0.2369"), (24_576, 24_576, "0.9114"), (1, 81_920, "0.0001"), (0, 0, "0.5")],
)
def test_vllm_gets_a_share_of_the_device_that_leaves_room_for_what_it_takes_beside(
    memory_mb: int, total_mb: int, expected: str
) -> None:
    argv = launch(of(Engine.VLLM), replace(ON_GPU, memory_mb=memory_mb, device_total_mb=total_mb)).argv

    assert after("--gpu-memory-utilization", argv) == expected


@pytest.mark.parametrize(
    ("args", "memory_mb", "least_mb", "managed_mb"),
    [
        ((), 12_000, 5000, 12_000 - vllm.OUTSIDE_MB),
        (("--enforce-eager",), 12_000, 5000, 12_000 - vllm.OUTSIDE_EAGER_MB),
        ((), 6000, 7572, 7572 - vllm.OUTSIDE_MB),
        ((), 5000, 7572, 5000),
        ((), 3000, 0, 1500),
    ],
    ids=["with graphs", "eager", "room for one request", "declared too small", "nothing known"],
)
def test_vllm_manages_the_placed_memory_without_what_it_takes_beside_but_enough_to_start(
    args: tuple[str, ...], memory_mb: int, least_mb: int, managed_mb: int
) -> None:
    context = replace(ON_GPU, memory_mb=memory_mb, least_mb=least_mb)

    assert vllm.managed_mb(of(Engine.VLLM, args=args), context) == managed_mb


def test_on_a_cpu_vllm_manages_all_of_the_placed_memory() -> None:
    assert vllm.managed_mb(of(Engine.VLLM), replace(ON_GPU, device_kind="cpu", memory_mb=3000)) == 3000


@pytest.mark.parametrize(
    ("version", "args", "cache_mb", "named"),
    [
        ("0.26.0", (), 8051, True),
        ("0.11.0", (), 8051, True),
        ("0.10.2", (), 8051, False),
        ("of an unknown version", (), 8051, False),
        ("0.26.0", (), 0, False),
        ("0.26.0", ("--kv-cache-memory-bytes", "1"), 8051, False),
    ],
)
def test_a_known_cache_size_is_passed_to_a_version_that_has_the_flag(
    version: str, args: tuple[str, ...], cache_mb: int, named: bool
) -> None:
    argv = launch(of(Engine.VLLM, args=args), replace(ON_GPU, version=version, cache_mb=cache_mb)).argv

    assert (str(8051 * 1024 * 1024) in argv) is named


@given(st.lists(st.integers(1, 24_576), min_size=2, max_size=6))
def test_the_shares_of_one_device_never_exceed_the_placed_memory(memories: list[int]) -> None:
    shares = [float(vllm.share(of(Engine.VLLM), replace(ON_GPU, memory_mb=mb))) for mb in memories if mb >= 25]

    assert sum(shares) * 24_576 <= sum(memories)


@pytest.mark.parametrize(("memory_mb", "gib"), [(2500, "1"), (9000, "5"), (100, "1")])
def test_on_a_cpu_the_cache_of_vllm_is_limited(memory_mb: int, gib: str) -> None:
    context = replace(ON_GPU, devices=(), device_kind="cpu", weights_mb=1500, memory_mb=memory_mb)

    result = launch(of(Engine.VLLM), context)

    assert result.env["VLLM_CPU_KVCACHE_SPACE"] == gib
    assert "--enforce-eager" in result.argv


@pytest.mark.parametrize(
    ("name", "tools", "reasoning"),
    [
        ("Qwen/Qwen3-8B", "hermes", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "hermes", None),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
        ("Qwen/Qwen2.5-7B-Instruct", "hermes", None),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3_json", None),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_pythonic", None),
        ("mistralai/Magistral-Small-2509", "mistral", "mistral"),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "hermes", "deepseek_r1"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek_v31", "deepseek_v3"),
        ("openai/gpt-oss-20b", "openai", "openai_gptoss"),
        ("zai-org/GLM-4.5-Air", "glm45", "glm45"),
        ("moonshotai/Kimi-K2-Instruct", "kimi_k2", None),
        ("google/gemma-2-2b-it", None, None),
        ("org/their-own", None, None),
    ],
)
def test_parsers_for_tools_and_reasoning_follow_the_models_family(
    name: str, tools: str | None, reasoning: str | None
) -> None:
    argv = launch(Function(id=name, engine=Engine.VLLM), ON_GPU).argv

    assert (after("--tool-call-parser", argv), after("--reasoning-parser", argv)) == (tools, reasoning)
    assert ("--enable-auto-tool-choice" in argv) == (tools is not None)


def test_the_family_of_a_model_with_its_own_name_follows_the_source() -> None:
    argv = launch(of(Engine.VLLM, source="Qwen/Qwen3-8B"), ON_GPU).argv

    assert after("--tool-call-parser", argv) == "hermes"


def test_a_spec_can_set_its_parsers_or_none() -> None:
    named = launch(of(Engine.VLLM, tool_parser="xlam", reasoning_parser="granite"), ON_GPU).argv
    none = launch(Function(id="Qwen/Qwen3-8B", engine=Engine.VLLM, tool_parser="none", reasoning_parser="none"), ON_GPU)

    assert (after("--tool-call-parser", named), after("--reasoning-parser", named)) == ("xlam", "granite")
    assert not {"--tool-call-parser", "--reasoning-parser", "--enable-auto-tool-choice"} & set(none.argv)


@pytest.mark.parametrize("task", ["embed", "rerank"])
def test_a_model_for_embeddings_or_ranking_gets_no_parsers(task: Any) -> None:
    argv = launch(Function(id="Qwen/Qwen3-Embedding-0.6B", engine=Engine.VLLM, task=task), ON_GPU).argv

    assert after("--runner", argv) == "pooling"
    assert "--tool-call-parser" not in argv


@pytest.mark.parametrize(("sleeps", "mode"), [(False, "0"), (True, "1")])
def test_developer_endpoints_are_on_only_for_an_engine_that_must_be_able_to_sleep(sleeps: bool, mode: str) -> None:
    result = launch(of(Engine.VLLM, env={"VLLM_SERVER_DEV_MODE": "1"}), replace(ON_GPU, sleeps=sleeps))

    assert result.env["VLLM_SERVER_DEV_MODE"] == mode
    assert ("--enable-sleep-mode" in result.argv) == sleeps


def test_the_key_file_of_vllm_has_the_keys_of_the_worker_and_of_its_agent() -> None:
    context = replace(ON_GPU, key="of-the-worker", control_key="of-the-agent", key_file="/run/one.key")

    assert launch(of(Engine.VLLM), context).files == {"/run/one.key": "of-the-worker\nof-the-agent"}


ADAPTERS = (Adapter("a", "org/a"), Adapter("b", "org/b"))


@pytest.mark.parametrize(
    ("args", "rank", "count", "highest"),
    [
        ((), 1, "2", "16"),
        ((), 64, "2", "64"),
        ((), 65, "2", "128"),
        ((), 9999, "2", "512"),
        (("--max-loras", "8"), 8, "8", "16"),
        (("--max_lora_rank=256",), 8, "2", None),
    ],
)
def test_vllm_loads_adapters_while_it_runs(args: tuple[str, ...], rank: int, count: str, highest: str | None) -> None:
    result = launch(of(Engine.VLLM, adapters=ADAPTERS, args=args), replace(ON_GPU, adapter_rank=rank))

    assert "--enable-lora" in result.argv
    assert after("--max-loras", result.argv) == count
    assert highest is None or after("--max-lora-rank", result.argv) == highest
    assert result.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_without_adapters_vllm_loads_none() -> None:
    result = launch(of(Engine.VLLM), ON_GPU)

    assert "--enable-lora" not in result.argv
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in result.env


@pytest.mark.parametrize(("args", "highest"), [(("--max-lora-rank", "256"), 256), (("--max_lora_rank=32",), 32)])
def test_the_functions_own_rank_counts(args: tuple[str, ...], highest: int) -> None:
    assert vllm.highest_rank(of(Engine.VLLM, args=args), 8) == highest


# Any program.


def test_placeholders_of_a_command_are_replaced() -> None:
    command = (
        "python", "-m", "sglang.launch_server", "--port", "{port}", "--host={host}", "--model-path", "{source}",
        "--served-model-name", "{model}", "--key-file", "{key_file}", "--gpus", "{devices}", '{"a": {b}}',
    )  # fmt: skip
    context = replace(ON_GPU, devices=("GPU-1b", "GPU-0a"), key_file="/run/cortex/one.key")

    assert launch(of(Engine.COMMAND, command=command, health_path="/ready", env={"A": "b"}), context) == Launch(
        argv=(
            "python", "-m", "sglang.launch_server", "--port", "20001", "--host=127.0.0.1",
            "--model-path", "/cache/model", "--served-model-name", "org/model",
            "--key-file", "/run/cortex/one.key", "--gpus", "GPU-1b,GPU-0a", '{"a": {b}}',
        ),
        env={"A": "b", "CUDA_VISIBLE_DEVICES": "GPU-1b,GPU-0a", "CORTEX_WORKER_KEY": "secret-of-the-worker"},
        health_path="/ready",
        server="command",
        files={"/run/cortex/one.key": "secret-of-the-worker"},
    )  # fmt: skip


def test_a_command_gets_the_name_that_its_program_serves() -> None:
    function = of(Engine.COMMAND, command=("serve", "{port}", "{model}"), served_name="tts-1")

    result = launch(function, CONTEXT)

    assert result.argv == ("serve", "20001", "tts-1")
    assert result.served_name == "tts-1"


def test_placeholders_in_inserted_values_are_not_replaced() -> None:
    result = launch(Function(id="{key_file}", engine=Engine.COMMAND, command=("serve", "{model}", "{port}")), CONTEXT)

    assert result.argv == ("serve", "{key_file}", "20001")


@given(st.sampled_from(HOSTILE) | st.text(max_size=20))
def test_a_command_keeps_its_number_of_arguments(name: str) -> None:
    function = Function(id=name, engine=Engine.COMMAND, command=("serve", "{port}", "{model}", "{source}"))

    assert launch(function, replace(CONTEXT, weights=name)).argv == ("serve", "20001", name, name)


def after(flag: str, argv: tuple[str, ...]) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else None


@given(st.sampled_from(HOSTILE) | st.text(max_size=20), st.sampled_from(HOSTILE), st.sampled_from(FREE))
def test_any_name_or_path_stays_one_argument(name: str, weights: str, arg: str) -> None:
    function = Function(id=name, engine=Engine.LLAMACPP, args=(arg,))

    argv = launch(function, replace(CONTEXT, weights=weights)).argv

    assert len(argv) == 16
    assert (argv[2], argv[4], argv[15]) == (weights, name, arg)


@pytest.mark.parametrize("engine", list(Engine))
def test_no_engine_reads_local_media_or_fetches_media(engine: Engine) -> None:
    function = of(engine, remote_images=True, command=("serve", "{port}") if engine is Engine.COMMAND else ())

    result = launch(function, ON_GPU)

    assert not {"--media-path", "--allowed-local-media-path"} & set(result.argv)
    if engine is Engine.VLLM:
        domain = result.argv[result.argv.index("--allowed-media-domains") + 1]
        assert domain.endswith(".invalid")
        assert result.env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_a_function_whose_arguments_cannot_work_is_not_launched() -> None:
    with pytest.raises(CannotLaunch, match="args: cortex gives --port itself"):
        launch(of(Engine.LLAMACPP, args=("--port", "80")), CONTEXT)
