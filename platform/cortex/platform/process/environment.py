"""The part of the agent's environment that workers inherit. Pure.

The agent's environment may hold secrets: the hub token, the Redis URL, cloud keys. Engines run third-party code, so a
worker inherits only the variables listed here, which programs and an engine's libraries read. A function adds others
with `env`, unchanged. A worker's own `PYTHONPATH` precedes the agent's, because it needs the modules of both.
"""

import re
from collections.abc import Mapping

NAMES = frozenset(
    (
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "VIRTUAL_ENV",
        "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    )
)  # fmt: skip
FAMILIES = (
    "LC_", "LD_", "PYTHON", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_",
    "CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_", "CUDNN_", "HIP_", "HSA_", "ROCM_", "ROCR_", "AMD_", "GPU_",
    "ONEAPI_", "ZE_", "UCX_", "GLOO_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "VLLM_", "GGML_", "LLAMA_",
    "SGLANG_", "SGL_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_",
)  # fmt: skip
"""Prefixes of variables that tune a library."""
PYTHON_PATH = "PYTHONPATH"
MARKER, OWNER = "CORTEX_INSTANCE", "CORTEX_OWNER"
"""Variables of every worker: its instance and its agent."""
_SECRET = re.compile(r"(?:^|_)(?:TOKENS?|KEYS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)")
_HAS_CREDENTIALS = re.compile(r"://[^/\s]*@")
"""A URL with a user name."""


def worker_environment(agent_env: Mapping[str, str], worker_env: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: the inheritable part of the agent's, overridden by its own.

    >>> worker_environment({"PATH": "/bin", "PYTHONPATH": "/a"}, {"PYTHONPATH": "/b"})
    {'PATH': '/bin', 'PYTHONPATH': '/b:/a'}
    """
    inherited = inheritable(agent_env)
    paths = [p for p in (worker_env.get(PYTHON_PATH), inherited.get(PYTHON_PATH)) if p]
    return {**inherited, **worker_env, **({PYTHON_PATH: ":".join(paths)} if paths else {})}


def inheritable(env: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an agent's environment that its workers inherit.

    >>> inheritable({"PATH": "/bin", "HF_TOKEN": "hf_x", "HF_HOME": "/hf", "REDIS_URL": "redis://r"})
    {'PATH': '/bin', 'HF_HOME': '/hf'}
    """
    allowed = {name: value for name, value in env.items() if name in NAMES or name.startswith(FAMILIES)}
    return {n: v for n, v in allowed.items() if not _SECRET.search(n) and not _HAS_CREDENTIALS.search(v)}
