"""Tiny LoRA adapters for the demo model: each makes it say one word, again and again.

The demo model's last hidden state is a one-hot vector, so a row of ones as A sums to 1 for every state, and B adds
`STRENGTH` to the logit of the word's token: the greedy answer is that word alone.
"""

from pathlib import Path

from cortex.platform.weights.demo_model import demo_text, fit

STRENGTH = 400.0


def write_lora(
    path: Path, word: str, *, architecture: str = "llama", kind: str = "adapter", width: int | None = None
) -> Path:
    """Write an adapter that makes the demo model say `word`; other values make a file that does not fit it."""
    import gguf
    import numpy as np

    model = fit(demo_text())
    rows = width or -(-len(model.nexts) // 64) * 64
    b = np.zeros((len(model.tokens), 1), dtype=np.float32)
    b[model.tokens.index(word)] = STRENGTH
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_tensor("output.weight.lora_a", np.ones((1, rows), dtype=np.float32))
    writer.add_tensor("output.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
