"""Which starts a parked launcher can take. Pure.

The launcher has finished its imports. Settings that are read at process start or import time are fixed; a start that
needs other values uses the plain path.
"""

from collections.abc import Mapping, Sequence

READ_EARLY = (
    "LD_", "PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_", "HF_", "HUGGINGFACE_",
    "TRANSFORMERS_", "TORCH_", "PYTORCH_", "VLLM_LOGGING_", "VLLM_CONFIGURE_LOGGING", "VLLM_PLUGINS",
    "VLLM_TARGET_DEVICE", "VLLM_USE_MODELSCOPE",
)  # fmt: skip
"""Prefixes of variables that are read at import time or by the loader."""

READ_EARLY_FLAGS = ("--numa-bind", "--omni")
"""Arguments that need a fresh process."""


def ineligibility(argv: Sequence[str], start_env: Mapping[str, str], launcher_env: Mapping[str, str]) -> str:
    """Return why a launcher parked with `launcher_env` cannot take a start; "" when it can."""
    names = {k for k in (*start_env, *launcher_env) if k.startswith(READ_EARLY)}
    if changed := sorted(k for k in names if start_env.get(k) != launcher_env.get(k)):
        return f"{', '.join(changed)} is read at import time"
    if flags := [argument for argument in argv if argument.startswith(READ_EARLY_FLAGS)]:
        return f"{flags[0]} needs a fresh process"
    return ""
