"""The variables that workers inherit from the agent, never secrets."""

import pytest

from cortex.platform.process.environment import inheritable, worker_environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/usr/bin"),
        ("LC_ALL", "C.UTF-8"),
        ("LD_LIBRARY_PATH", "/usr/local/cuda/lib64"),
        ("CUDA_HOME", "/usr/local/cuda"),
        ("HF_HUB_OFFLINE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("VLLM_ATTENTION_BACKEND", "FLASHINFER"),
        ("HTTPS_PROXY", "http://proxy:3128"),
    ],
)
def test_variables_of_libraries_are_inherited(name: str, value: str) -> None:
    assert inheritable({name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_secret"),
        ("HF_TOKEN_PATH", "/etc/token"),
        ("HUGGING_FACE_HUB_TOKEN", "hf_secret"),
        ("CORTEX_REDIS_URL", "redis://10.0.0.1"),
        ("CORTEX_TOKEN_FILE", "/etc/cortex/fleet.token"),
        ("REDIS_URL", "redis://10.0.0.1"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("VLLM_API_KEY", "secret"),
        ("LLAMA_API_KEY", "secret"),
        ("PYTHON_KEYRING_PASSWORD", "secret"),
        ("HTTPS_PROXY", "http://me:secret@proxy:3128"),
        ("HF_ENDPOINT", "https://me:secret@mirror"),
        ("SSH_AUTH_SOCK", "/run/agent"),
        ("NOTIFY_SOCKET", "/run/systemd/notify"),
        ("LISTEN_FDS", "1"),
    ],
)
def test_secrets_and_the_agents_own_settings_are_not_inherited(name: str, value: str) -> None:
    assert inheritable({name: value}) == {}


@pytest.mark.parametrize(
    ("agents", "own", "expected"),
    [("/a", "/b", "/b:/a"), ("/a", None, "/a"), (None, "/b", "/b"), ("/a", "", "/a")],
)
def test_a_workers_python_path_precedes_the_agents(agents: str | None, own: str | None, expected: str) -> None:
    fields = [{} if path is None else {"PYTHONPATH": path} for path in (agents, own)]

    assert worker_environment(*fields) == {"PYTHONPATH": expected}


def test_without_python_paths_the_variable_is_absent() -> None:
    assert worker_environment({"PATH": "/bin"}, {"A": "b"}) == {"PATH": "/bin", "A": "b"}
