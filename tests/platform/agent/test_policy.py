"""An agent's settings decide what it starts, for every caller."""

import pytest
from msgspec.structs import replace

from cortex.functions.spec import Engine, Function
from cortex.platform.agent.policy import is_strict, refusal
from cortex.platform.settings import Agent

HOME = Agent(listen="127.0.0.1:13131")
NETWORK = Agent(listen="10.0.0.7:13131", worker_host="10.0.0.7")
PROGRAM = Function(id="f", engine=Engine.COMMAND, command=("python3", "/opt/serve.py", "{port}"))
VLLM = Function(id="f", engine=Engine.VLLM)


@pytest.mark.parametrize(
    "function",
    [
        PROGRAM,
        replace(VLLM, env={"LD_PRELOAD": "/tmp/x.so"}, args=("--middleware", "x.y"), allow_pickle=True),
    ],
)
def test_on_loopback_without_settings_every_function_is_started(function: Function) -> None:
    assert refusal(function, HOME) == ""


@pytest.mark.parametrize(
    ("agent", "strict"),
    [
        (HOME, False),
        (Agent(listen="[::1]:1"), False),
        (Agent(listen="0.0.0.0:1"), True),
        (Agent(listen="host-a:1"), True),
        (replace(HOME, commands=("serve",)), True),
        (replace(HOME, allow_engines=(Engine.VLLM,)), True),
        (replace(HOME, allow_code=("allow_pickle",)), True),
    ],
)
def test_an_agent_on_a_network_or_with_a_setting_is_strict(agent: Agent, strict: bool) -> None:
    assert is_strict(agent) is strict


def test_an_engine_that_is_not_listed_is_refused_by_the_name_of_the_setting() -> None:
    agent = replace(HOME, allow_engines=(Engine.VLLM, Engine.LLAMACPP))

    assert refusal(VLLM, agent) == ""
    assert "`[agent] allow_engines` has vllm, llamacpp" in refusal(PROGRAM, agent)


@pytest.mark.parametrize(
    ("commands", "starts"),
    [
        ((), False),
        (("*",), True),
        (("python3 /opt/serve.py",), True),
        (("python3",), True),
        (("'python3' '/opt/serve.py'",), True),
        (("python3 /opt/other.py",), False),
        (("/usr/bin/python3",), False),
        (("python",), False),
        (("",), False),
        (("python3 /opt/serve.py {port} more",), False),
    ],
)
def test_on_a_network_a_program_runs_only_if_its_beginning_is_listed(commands: tuple[str, ...], starts: bool) -> None:
    why = refusal(PROGRAM, replace(NETWORK, commands=commands))

    assert (why == "") is starts
    assert starts or "`[agent] commands`" in why


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PATH", "BASH_ENV", "ENV", "HOME", "ld_preload",
        "PERL5OPT", "NODE_OPTIONS", "VLLM_PLUGINS", "VLLM_ALLOW_INSECURE_SERIALIZATION", "NCCL_NET_PLUGIN",
        "CUDA_INJECTION64_PATH", "OMP_TOOL_LIBRARIES", "GGML_BACKEND_PATH", "LLAMA_ARG_MODEL", "TRITON_CACHE_DIR",
        "XDG_CONFIG_HOME", "VLLM_SERVER_DEV_MODE",
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [VLLM, PROGRAM])
def test_a_variable_that_loads_code_is_refused_unless_it_is_listed(name: str, function: Function) -> None:
    agent = replace(NETWORK, commands=("python3",))
    wanted = replace(function, env={name: "x"})

    assert f"the variable {name} can load code: `[agent] allow_code`" in refusal(wanted, agent)
    assert refusal(wanted, replace(agent, allow_code=(name,))) == ""
    assert refusal(wanted, replace(agent, allow_code=("*",))) == ""


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "VLLM_ATTENTION_BACKEND", "NCCL_DEBUG", "CUDA_DEVICE_ORDER"])
def test_a_variable_that_tunes_a_library_is_allowed(name: str) -> None:
    assert refusal(replace(VLLM, env={name: "1"}), NETWORK) == ""


@pytest.mark.parametrize(
    "option",
    [
        "--trust-remote-code", "--trust_remote_code", "--trust-rem", "--middleware=a.b", "--config", "--worker-cls",
        "--worker-extension-cls", "--tool-parser-plugin", "--kv-transfer-config", "--kv-transfer-config.x",
        "--allowed-local-media-path", "--rpc", "--path", "-m", "-hf", "--tools", "--host", "--api-key",
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.LLAMACPP])
def test_an_option_that_loads_code_is_refused_in_every_spelling_unless_it_is_listed(
    option: str, engine: Engine
) -> None:
    wanted = replace(VLLM, engine=engine, args=(option,))
    name = option.partition("=")[0]

    assert f"the option {name} can load code or files: `[agent] allow_code`" in refusal(wanted, NETWORK)
    assert refusal(wanted, replace(NETWORK, allow_code=(name,))) == ""


@pytest.mark.parametrize(
    "args",
    [
        ("--max-num-seqs", "8"),
        ("--reasoning-parser", "qwen3"),
        ("--enable-prefix-caching",),
        ("-ngl", "99"),
        ("-c", "1"),
    ],
)
def test_an_option_that_tunes_an_engine_is_allowed(args: tuple[str, ...]) -> None:
    assert refusal(replace(VLLM, args=args), NETWORK) == ""


def test_pickled_weights_are_refused_on_a_network_unless_they_are_listed() -> None:
    wanted = replace(VLLM, allow_pickle=True)

    assert "`[agent] allow_code` of this host does not list 'allow_pickle'" in refusal(wanted, NETWORK)
    assert refusal(wanted, replace(NETWORK, allow_code=("allow_pickle",))) == ""


@pytest.mark.parametrize(
    "wanted",
    [
        {"chat_template": "/etc/shadow"},
        {"mmproj": "~/secret.gguf"},
        {"args": ("--speculative-config", '{"model": "/etc/x"}')},
        {"args": ("--model-draft=/etc/x",)},
        {"args": ("-md", "/srv/models/../../etc/x")},
        {"args": ("-md", "../x")},
    ],
)
def test_no_path_of_a_function_leads_out_of_the_weight_roots(wanted: dict[str, object]) -> None:
    agent = replace(HOME, weight_roots=("/srv/models",), cache_dir="/var/cache/cortex")

    assert "is outside `[agent] weight_roots` of this host" in refusal(replace(VLLM, **wanted), agent)
    assert refusal(replace(VLLM, **wanted), HOME) == ""


def test_a_path_inside_the_weight_roots_or_an_inline_template_is_allowed() -> None:
    agent = replace(HOME, weight_roots=("/srv/models",), cache_dir="/var/cache/cortex")
    wanted = replace(
        VLLM, mmproj="/srv/models/a.gguf", chat_template="{{ a / b }}", args=("--x", "/var/cache/cortex/y")
    )

    assert refusal(wanted, agent) == ""
