"""A model that compares texts by their words, as a GGUF of the qwen3 architecture, for real embeddings and reranking.

It has the bigram's tokenizer and one-hot states. One layer of attention with queries and keys of zero looks at all
tokens alike, and its values are the states themselves: so the last token leaves the layer as the histogram of all words
so far (and its own word once more). Its direction is the embedding.

For reranking llama.cpp gives it query and document in one text. After the last norm the histogram has a fixed length
L2, so the sum over its words is the smaller the more they repeat; the classifier scores by that. A document with the
query's words repeats them, and so comes before one of the same length with others.
"""

import math
from pathlib import Path

import gguf
import numpy as np

from cortex.platform.weights.demo_model import CONTROL, END, OTHER, UNKNOWN, fit

WIDTH = 256
"""More words than that the texts must not have."""


def write_histogram(path: Path, text: str, *, name: str, rerank: bool = False) -> None:
    """Write a model that knows the words of a text."""
    model = fit(text)
    assert len(model.nexts) <= WIDTH
    states = np.zeros((len(model.tokens), WIDTH), dtype=np.float16)
    for token, state in enumerate(model.states):
        if state != OTHER:
            states[token, state] = 1
    states[:, 0] = 1e-3  # what knows no word must not be divided by nothing

    def same(value: float, size: int = WIDTH) -> np.ndarray:
        return np.full(size, value, dtype=np.float32)

    def zeros(rows: int, columns: int) -> np.ndarray:
        return np.zeros((rows, columns), dtype=np.float16)

    one = np.eye(WIDTH, dtype=np.float16)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(WIDTH)
    writer.add_value_length(WIDTH)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_layer_norm_rms_eps(1e-9)
    writer.add_vocab_size(len(model.tokens))
    writer.add_pooling_type(gguf.PoolingType.RANK if rerank else gguf.PoolingType.LAST)
    if rerank:
        writer.add_array("qwen3.classifier.output_labels", ["yes", "no"])
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(model.tokens)
    plain = len(model.tokens) - len(CONTROL)
    control = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * (len(CONTROL) - 1)
    writer.add_token_types(control + [gguf.TokenType.NORMAL] * plain)
    writer.add_unk_token_id(CONTROL.index(UNKNOWN))
    writer.add_eos_token_id(CONTROL.index(END))
    writer.add_pad_token_id(CONTROL.index(END))
    writer.add_add_bos_token(False)

    writer.add_tensor("token_embd.weight", states)
    writer.add_tensor("output_norm.weight", same(1.0))
    writer.add_tensor("blk.0.attn_norm.weight", same(1 / math.sqrt(WIDTH)))
    writer.add_tensor("blk.0.attn_q.weight", zeros(WIDTH, WIDTH))
    writer.add_tensor("blk.0.attn_k.weight", zeros(WIDTH, WIDTH))
    writer.add_tensor("blk.0.attn_v.weight", one * 64)
    writer.add_tensor("blk.0.attn_output.weight", one)
    writer.add_tensor("blk.0.attn_q_norm.weight", same(1.0))
    writer.add_tensor("blk.0.attn_k_norm.weight", same(1.0))
    writer.add_tensor("blk.0.ffn_norm.weight", same(1.0))
    writer.add_tensor("blk.0.ffn_gate.weight", zeros(32, WIDTH))
    writer.add_tensor("blk.0.ffn_up.weight", zeros(32, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", zeros(WIDTH, 32))
    if rerank:
        scores = np.stack([np.full(WIDTH, -0.02), np.zeros(WIDTH)]).astype(np.float16)
        writer.add_tensor("cls.output.weight", scores)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
