"""Writes a tiny model for vLLM with the engine's own Python: `python tiny_vllm.py FOLDER`; and, with any Python, LoRA
adapters for it.

Two layers of random weights in bf16, a byte-level tokenizer trained on a sentence, and a chat template. It knows
nothing, and vLLM loads, serves and guides it like any other.
"""

import json
import random
import struct
import sys
from pathlib import Path

TEXT = "the quick brown fox jumps over the lazy dog and the ship sails to the harbour at night"
TEMPLATE = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}</s>{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] or '' }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write(folder: Path, seed: int = 0) -> None:
    """Write the model's directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT] * 50, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        torch_dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


HIDDEN, HEADS, HEAD, LAYERS = 64, 4, 32, 2
"""Of the model above."""


def write_adapter(folder: Path, seed: int, *, rank: int = 8, hidden: int = HIDDEN) -> Path:
    """Write a LoRA adapter in the format of peft, strong enough to change every answer; another `hidden` makes one that
    does not fit. Return its path."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 64,
        "target_modules": ["o_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    numbers = random.Random(seed)
    header: dict[str, object] = {}
    data = b""
    for layer in range(LAYERS):
        for part, rows, columns in (("A", rank, HEADS * HEAD), ("B", hidden, rank)):
            values = [numbers.gauss(0.0, 1.0) for _ in range(rows * columns)]
            tensor = struct.pack(f"<{len(values)}f", *values)
            name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{part}.weight"
            offsets = [len(data), len(data) + len(tensor)]
            header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}
            data += tensor
    encoded = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
