#!/usr/bin/env bash
# Installs the servers and OpenAI's SDK for Node, once for each version of this file, and prints the folder.
set -euo pipefail
home="${XDG_CACHE_HOME:-$HOME/.cache}/cortex/engines/media-$(sha256sum "$0" | cut -c1-12)"
if [ ! -e "$home/complete" ]; then
    {
        python3 -m venv --clear "$home"
        "$home/bin/pip" install -q \
            "faster-whisper-server==0.0.3" "faster-whisper==1.2.1" "ctranslate2==4.8.5" \
            "local-tts-studio==1.0.0" "piper-tts==1.8.0" "onnxruntime==1.32.0" "onnx==1.23.2"
        npm install --prefix "$home" --no-audit --no-fund --no-package-lock --loglevel=error "openai@7.59.0"
        touch "$home/complete"
    } >&2
fi
echo "$home"
