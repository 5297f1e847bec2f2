"""Which starts a parked launcher can take. Pure.

It has imported everything already. Whatever is read when a process begins or a library is loaded cannot be changed
any more; a start that wants it otherwise is made plainly.
"""

from collections.abc import Mapping, Sequence

READ_EARLY = (
    "LD_", "PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_", "HF_", "HUGGINGFACE_",
    "TRANSFORMERS_", "TORCH_", "PYTORCH_", "VLLM_LOGGING_", "VLLM_CONFIGURE_LOGGING", "VLLM_PLUGINS",
    "VLLM_TARGET_DEVICE", "VLLM_USE_MODELSCOPE",
)  # fmt: skip
"""How variables begin that are read while importing, or by the loader."""

READ_EARLY_FLAGS = ("--numa-bind", "--omni")
"""Arguments that need a process of its own making."""


def ineligibility(argv: Sequence[str], wanted: Mapping[str, str], parked: Mapping[str, str]) -> str:
    """Say why a start with this environment cannot come from a launcher that was parked with that one; or nothing."""
    early = {k for k in (*wanted, *parked) if k.startswith(READ_EARLY)}
    if different := sorted(k for k in early if wanted.get(k) != parked.get(k)):
        return f"{', '.join(different)} is read while importing"
    if flags := [word for word in argv if word.startswith(READ_EARLY_FLAGS)]:
        return f"{flags[0]} needs a process of its own"
    return ""
