#!/usr/bin/env bash
# Builds llama-cpp-python with its server into an environment of its own, once, and prints where that is.
set -euo pipefail
home="${XDG_CACHE_HOME:-$HOME/.cache}/cortex/engines/llama-cpp-python"
if [ ! -e "$home/complete" ]; then
    {
        python3 -m venv "$home"
        nice -n 19 "$home/bin/pip" install -q "llama-cpp-python[server]>=0.3.16"
        touch "$home/complete"
    } >&2
fi
echo "$home"
