"""Facts about a model from its local weights: the chat template's abilities, context length and vision.

The agent publishes them for every function whose weights it has, so routers know a model before it runs. Failures
give empty facts: nothing here prevents a start.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.spec import Function
from cortex.platform import text_files, untrusted
from cortex.platform.served_model import MOST_CONTEXT
from cortex.platform.weights import gguf_head

log = structlog.get_logger()

PROBE_S = 20.0
LONGEST_FILE = 16 << 20
_VISION_OPTIONS = ("--mmproj", "-mm", "--mmproj-url")

Probe = Callable[[str, str, str], ModelProfile]


class ModelFacts:
    """Caches facts by the weights' path, age and size; probes each distinct template once."""

    def __init__(self, probe: Probe | None = None) -> None:
        self._probe = probe or functools.cache(run_probe)
        self._cache: dict[str, tuple[tuple[int, int], ModelProfile]] = {}

    def of(self, function: Function, weights: str) -> ModelProfile | None:
        """Return the facts in a function's weights; None when there are none. Blocks; never raises."""
        if not weights:
            return None
        path = Path(weights)
        try:
            facts = self._of(path)
        except (OSError, ValueError, RecursionError, gguf_head.BadGguf) as error:
            log.info("weights_unreadable", path=weights, why=str(error))
            return None
        has_projector = bool(function.mmproj) or any(
            option.partition("=")[0] in _VISION_OPTIONS for option in function.args
        )
        if _main_file(path).suffix == ".gguf":  # llama.cpp's vision projector is a separate file
            facts = replace(facts, vision=has_projector)
        if function.chat_template:
            facts = self._with_template(facts, Path(function.chat_template).expanduser())
        return None if facts == ModelProfile() else facts

    def _with_template(self, facts: ModelProfile, template: Path) -> ModelProfile:
        """Replace the facts of the model's own template by those of the operator's."""
        try:
            probed = self._probe(text_files.read(template), "<s>", "</s>")
        except (OSError, ValueError):
            probed = ModelProfile()
        return replace(facts, template=probed.template, reasoning=probed.reasoning, effort=probed.effort)

    def _of(self, path: Path) -> ModelProfile:
        main = _main_file(path)
        stat = main.stat()
        version = (stat.st_mtime_ns, stat.st_size)
        entry = self._cache.get(str(main))
        if entry is None or entry[0] != version:
            facts = self._gguf(main) if main.suffix == ".gguf" else self._folder(path)
            entry = self._cache[str(main)] = (version, facts)
        return entry[1]

    def _gguf(self, path: Path) -> ModelProfile:
        head = gguf_head.read(path)
        template = head.get("tokenizer.chat_template")
        facts = self._probe(template, "<s>", "</s>") if isinstance(template, str) else ModelProfile()
        context = head.get(f"{head.get('general.architecture')}.context_length")
        return replace(facts, context=untrusted.positive(context, MOST_CONTEXT))

    def _folder(self, path: Path) -> ModelProfile:
        """Read a folder in HuggingFace's layout."""
        config, tokenizer = _json(path / "config.json"), _json(path / "tokenizer_config.json")
        template = _template(path, tokenizer)
        bos, eos = (_token(tokenizer.get(name)) for name in ("bos_token", "eos_token"))
        facts = self._probe(template, bos, eos) if template else ModelProfile()
        text = config.get("text_config")
        window = (text if isinstance(text, dict) else config).get("max_position_embeddings")
        return replace(facts, context=untrusted.positive(window, MOST_CONTEXT), vision="vision_config" in config)


def run_probe(template: str, bos: str, eos: str) -> ModelProfile:
    """Probe a template in a separate process with tight limits."""
    request = json.dumps({"template": template, "bos_token": bos, "eos_token": eos}).encode()
    digest = hashlib.sha256(request).hexdigest()[:12]
    try:
        completed = subprocess.run(
            [sys.executable, "-m", "cortex.platform.weights.template_probe"],
            input=request,
            capture_output=True,
            timeout=PROBE_S,
            check=False,
            env={"PATH": os.environ.get("PATH", "")},
        )
        return msgspec.json.decode(completed.stdout, type=ModelProfile)
    except (subprocess.TimeoutExpired, OSError, msgspec.DecodeError) as error:
        log.info("template_unknown", template=digest, why=type(error).__name__)
        return ModelProfile()


def _main_file(path: Path) -> Path:
    """Return the file with the metadata: the (first) GGUF, or a folder's config."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.gguf"))
    return files[0] if files and not (path / "config.json").exists() else path / "config.json"


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} when the file is missing or too large."""
    if not path.is_file() or path.stat().st_size > LONGEST_FILE:
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _template(path: Path, tokenizer: dict[str, Any]) -> str:
    """Return the template from its own file or the tokenizer's config; the default one of several."""
    file = path / "chat_template.jinja"
    if file.is_file() and file.stat().st_size < LONGEST_FILE:
        return file.read_text(encoding="utf-8")
    template = tokenizer.get("chat_template") or _json(path / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default") or next(iter(by_name.values()), "")
    return template if isinstance(template, str) else ""


def _token(token: object) -> str:
    """Return a special token, which is text or an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
