"""What of an agent's environment its workers get, and that none of its secrets is among it."""

import pytest

from cortex.platform.workers.environment import handed_on, whole


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
def test_what_libraries_look_for_is_handed_on(name: str, value: str) -> None:
    assert handed_on({name: value}) == {name: value}


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
def test_secrets_and_what_is_meant_for_the_agent_are_not(name: str, value: str) -> None:
    assert handed_on({name: value}) == {}


@pytest.mark.parametrize(
    ("agents", "own", "expected"),
    [("/a", "/b", "/b:/a"), ("/a", None, "/a"), (None, "/b", "/b"), ("/a", "", "/a")],
)
def test_a_workers_modules_go_before_those_of_its_agent(agents: str | None, own: str | None, expected: str) -> None:
    given = [{} if path is None else {"PYTHONPATH": path} for path in (agents, own)]

    assert whole(*given) == {"PYTHONPATH": expected}


def test_a_worker_without_modules_of_its_own_has_no_path_for_them() -> None:
    assert whole({"PATH": "/bin"}, {"A": "b"}) == {"PATH": "/bin", "A": "b"}
