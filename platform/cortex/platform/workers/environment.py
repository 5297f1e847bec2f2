"""What of its own environment an agent hands to its workers. Pure.

An agent may come from anybody's shell, and knows secrets: the hub's token, the record's address, keys of clouds.
Engines run other people's code, so a worker gets only what is listed here, which is what programs and the libraries
below an engine look for on a host. What else it needs, its function says in `env`; that is handed over as it stands.
A worker's own `PYTHONPATH` goes before the agent's: with either alone a module would be missing.
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
"""How the names begin of variables that tune a library."""
PYTHON_PATH = "PYTHONPATH"
_SECRET = re.compile(r"(?:^|_)(?:TOKENS?|KEYS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)")
_WITH_A_PASSWORD = re.compile(r"://[^/\s]*@")
"""An address that names a user."""


def whole(agents: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: what of its agent's is handed on, and its own over it.

    >>> whole({"PATH": "/bin", "PYTHONPATH": "/a"}, {"PYTHONPATH": "/b"})
    {'PATH': '/bin', 'PYTHONPATH': '/b:/a'}
    """
    handed = handed_on(agents)
    paths = [p for p in (own.get(PYTHON_PATH), handed.get(PYTHON_PATH)) if p]
    return {**handed, **own, **({PYTHON_PATH: ":".join(paths)} if paths else {})}


def handed_on(own: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an agent's environment that its workers get.

    >>> handed_on({"PATH": "/bin", "HF_TOKEN": "hf_x", "HF_HOME": "/hf", "REDIS_URL": "redis://r"})
    {'PATH': '/bin', 'HF_HOME': '/hf'}
    """
    listed = {name: value for name, value in own.items() if name in NAMES or name.startswith(FAMILIES)}
    return {n: v for n, v in listed.items() if not _SECRET.search(n) and not _WITH_A_PASSWORD.search(v)}
