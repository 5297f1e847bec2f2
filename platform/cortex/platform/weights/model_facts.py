"""What the weights on this host say about their model: the chat template's abilities, the context, the senses.

The agent asks for every function whose weights it has, and publishes the answers, so that the routers know about a
model before it runs. An answer that cannot be had is an empty one: nothing here keeps a function from starting.
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
from cortex.platform import untrusted
from cortex.platform.weights import gguf_head
from cortex.platform.workers.served_model import MOST_CONTEXT

log = structlog.get_logger()

PROBE_S = 20.0
LONGEST_FILE = 16 << 20
_EYES = ("--mmproj", "-mm", "--mmproj-url")

Probe = Callable[[str, str, str], ModelProfile]


class ModelFacts:
    """Remembers what was found, by the weights' path and age; a template is tried once however many models have it."""

    def __init__(self, probe: Probe | None = None) -> None:
        self._probe = probe or functools.cache(probed)
        self._found: dict[str, tuple[tuple[int, int], ModelProfile]] = {}

    def of(self, function: Function, weights: str) -> ModelProfile | None:
        """Return what is known of a function from its weights; None when they say nothing. Blocks; never raises."""
        if not weights:
            return None
        path = Path(weights)
        try:
            known = self._of(path)
        except (OSError, ValueError, RecursionError, gguf_head.BadGguf) as error:
            log.info("weights_unread", path=weights, why=str(error))
            return None
        sees = bool(function.mmproj) or any(word.partition("=")[0] in _EYES for word in function.args)
        if _main_file(path).suffix == ".gguf":  # llama.cpp has its eyes in another file
            known = replace(known, vision=sees)
        if function.chat_template:
            known = self._templated(known, Path(function.chat_template).expanduser())
        return None if known == ModelProfile() else known

    def _templated(self, known: ModelProfile, template: Path) -> ModelProfile:
        """With a template of its operator's instead of its own."""
        try:
            tried = self._probe(template.read_text(encoding="utf-8"), "<s>", "</s>")
        except (OSError, ValueError):
            tried = ModelProfile()
        return replace(known, template=tried.template, reasoning=tried.reasoning, effort=tried.effort)

    def _of(self, path: Path) -> ModelProfile:
        main = _main_file(path)
        stat = main.stat()
        mark = (stat.st_mtime_ns, stat.st_size)
        kept = self._found.get(str(main))
        if kept is None or kept[0] != mark:
            known = self._gguf(main) if main.suffix == ".gguf" else self._folder(path)
            kept = self._found[str(main)] = (mark, known)
        return kept[1]

    def _gguf(self, path: Path) -> ModelProfile:
        head = gguf_head.read(path)
        template = head.get("tokenizer.chat_template")
        known = self._probe(template, "<s>", "</s>") if isinstance(template, str) else ModelProfile()
        context = head.get(f"{head.get('general.architecture')}.context_length")
        return replace(known, context=untrusted.positive(context, MOST_CONTEXT))

    def _folder(self, path: Path) -> ModelProfile:
        """A folder as HuggingFace lays it out."""
        config, tokenizer = _json(path / "config.json"), _json(path / "tokenizer_config.json")
        template = _template(path, tokenizer)
        bos, eos = (_token(tokenizer.get(name)) for name in ("bos_token", "eos_token"))
        known = self._probe(template, bos, eos) if template else ModelProfile()
        text = config.get("text_config")
        window = (text if isinstance(text, dict) else config).get("max_position_embeddings")
        return replace(known, context=untrusted.positive(window, MOST_CONTEXT), vision="vision_config" in config)


def probed(template: str, bos: str, eos: str) -> ModelProfile:
    """Try a template in a process of its own, and with little of everything."""
    asked = json.dumps({"template": template, "bos_token": bos, "eos_token": eos}).encode()
    digest = hashlib.sha256(asked).hexdigest()[:12]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cortex.platform.weights.template_probe"],
            input=asked,
            capture_output=True,
            timeout=PROBE_S,
            check=False,
            env={"PATH": os.environ.get("PATH", "")},
        )
        return msgspec.json.decode(done.stdout, type=ModelProfile)
    except (subprocess.TimeoutExpired, OSError, msgspec.DecodeError) as error:
        log.info("template_unknown", template=digest, why=type(error).__name__)
        return ModelProfile()


def _main_file(path: Path) -> Path:
    """The file that says most: the GGUF (the first, of several), or a folder's config."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.gguf"))
    return found[0] if found and not (path / "config.json").exists() else path / "config.json"


def _json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder, empty when it is not there."""
    if not path.is_file() or path.stat().st_size > LONGEST_FILE:
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _template(path: Path, tokenizer: dict[str, Any]) -> str:
    """The template: in a file of its own, or in the tokenizer's; of several, the default."""
    alone = path / "chat_template.jinja"
    if alone.is_file() and alone.stat().st_size < LONGEST_FILE:
        return alone.read_text(encoding="utf-8")
    found = tokenizer.get("chat_template") or _json(path / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default") or next(iter(named.values()), "")
    return found if isinstance(found, str) else ""


def _token(token: object) -> str:
    """A special token, written as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
