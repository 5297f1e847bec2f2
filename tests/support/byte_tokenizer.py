"""A tokenizer of single bytes, in HuggingFace's form: for programs that load one and must reach no hub."""

import json
from collections.abc import Sequence
from pathlib import Path

NAME = "cortex/bytes"
END = "<|endoftext|>"
_SNAPSHOT = "0" * 40


def write_cache(folder: Path) -> dict[str, str]:
    """Write a cache like the hub's, and return the environment in which a program finds `NAME` there."""
    cached = folder / "hub" / f"models--{NAME.replace('/', '--')}"
    files = cached / "snapshots" / _SNAPSHOT
    files.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(_SNAPSHOT)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (files / "tokenizer_config.json").write_text(json.dumps(settings))
    (files / "config.json").write_text("{}")
    (files / "tokenizer.json").write_text(json.dumps(tokenizer(byte_tokens(), [END])))
    return {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def byte_tokens() -> list[str]:
    """Return the 256 bytes as tokens. Bytes that are no visible character have GPT-2's letters from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(letters)) for byte in range(256)]


def tokenizer(tokens: Sequence[str], special: Sequence[str]) -> dict[str, object]:
    """Return `tokenizer.json`: byte-level BPE without a merge, so texts become bytes. Ids are positions: the tokens,
    then the special ones."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": len(tokens) + number, "content": text, **plain} for number, text in enumerate(special)]
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: id for id, token in enumerate(tokens)}, "merges": []},
    }
