"""A bigram language model, written as a GGUF file of the llama architecture.

The demo and the tests use it: it needs no download and no GPU, takes a second to write, and its answers consist of
words of its training text, so a reader can tell which model answered. It understands nothing.

Fitting is counting, and the counts become weights in closed form. A token puts the model in a *state*: its
word, or the one state that all other tokens share. Row t of the embedding is the one-hot vector of t's state
s, in d dimensions. Attention and feed-forward weights are zero, so that vector reaches the last norm
unchanged. RMSNorm divides by sqrt(mean(x^2)) = 1/sqrt(d); the norm's gain is 1/sqrt(d), which undoes it; and column
s of the output matrix is log P(next | s), so

    logits = W . (e_s * sqrt(d)) / sqrt(d) = log P(next | s)

and softmax at temperature 1 samples the bigram itself. A pair without a count has log P = -100, so bytes and role
marks are not sampled even at temperature 2.

The tokeniser is "rwkv", llama.cpp's greedy longest match over plain bytes. With all 256 single bytes in the
vocabulary it round-trips any input; a space belongs to the word after it, so a stream needs no repair. Each word has
two tokens, " word" and "word", in one state: an answer must not start with a space, and the mark before an answer
leads only to the bare forms.

The same text and name give the same bytes.
"""

import math
import os
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

UNKNOWN, END, SYSTEM, USER, ASSISTANT = "<|unknown|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CONTROL = (UNKNOWN, END, SYSTEM, USER, ASSISTANT)
BYTES = tuple(f"\\x{byte:02x}" for byte in range(256))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] or '' }}{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

WORD = re.compile(r"(\s*)(\w[\w'’-]*|[^\w\s])")
SENTENCE_ENDS = frozenset(".!?")
NEVER = -100.0

CONTEXT_LENGTH = 32768
HEAD = 32  # the attention head is all zeros; 32 is the smallest size every backend takes
OTHER = 0  # the state of every token that is not a word of the text


class Bigram(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model, not yet converted to weights. Ids index `tokens`, states index `nexts`."""

    tokens: tuple[str, ...]
    """As llama.cpp's rwkv vocabulary spells them: the control tokens, the 256 bytes, the words."""
    states: tuple[int, ...]
    """The state that each token puts the model in."""
    nexts: tuple[dict[int, float], ...]
    """For each state, the nonzero probabilities of the next token."""


def demo_text() -> str:
    """Return the training text of the demo model, prose about a harbour at night."""
    return (Path(__file__).parent / "demo.txt").read_text(encoding="utf-8")


def write_bigram(path: Path, text: str, *, name: str) -> None:
    """Fit a model to the text and write it to `path` atomically."""
    model = fit(text)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        draft = Path(scratch) / path.name
        _write_gguf(draft, model, name=name)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)


def fit(text: str) -> Bigram:
    """Count which word follows which."""
    pieces = split(text)
    counts = count(pieces)
    words = sorted({piece.strip() for piece in pieces})
    state_of = {ASSISTANT: 1} | {word: state for state, word in enumerate(words, start=2)}

    tokens = [*CONTROL, *BYTES]
    states = [state_of.get(token, OTHER) for token in CONTROL] + [OTHER] * len(BYTES)
    ids = {control: i for i, control in enumerate(CONTROL)}
    for form in sorted({*pieces, *words}):
        encoded = form.encode()
        # A form of one byte, for example a comma, already has a token: the byte.
        ids[form] = len(CONTROL) + encoded[0] if len(encoded) == 1 else len(tokens)
        if ids[form] == len(tokens):
            tokens.append(form.replace("\\", "\\\\"))
            states.append(OTHER)
        states[ids[form]] = state_of[form.strip()]

    nexts: list[dict[int, float]] = [{}] * (2 + len(words))
    for word, following in counts.items():
        total = following.total()
        nexts[state_of.get(word, OTHER)] = {ids[form]: n / total for form, n in following.items()}
    return Bigram(tokens=tuple(tokens), states=tuple(states), nexts=tuple(nexts))


def split(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in order, each with a preceding space if it has one.

    >>> split("Wait, she said.")
    [' Wait', ',', ' she', ' said', '.']
    """
    matches = WORD.findall(text)
    return [(" " if space or i == 0 else "") + word for i, (space, word) in enumerate(matches)]


def count(pieces: list[str]) -> dict[str, Counter[str]]:
    """Count how often each piece follows each word; the text is a ring if it ends with a sentence.

    Two keys are not words: "" stands for any unknown token, and the assistant's mark starts an answer. After a
    sentence the answer ends one time in four, or more often in a text whose sentences start alike.
    """
    starts = [b for a, b in pairwise([".", *pieces]) if a.strip() in SENTENCE_ENDS]
    counts: dict[str, Counter[str]] = {word.strip(): Counter() for word in pieces}
    for a, b in pairwise(pieces):
        counts[a.strip()][b] += 1
    if pieces:
        last = pieces[-1].strip()
        counts[last][pieces[0] if last in SENTENCE_ENDS else END] += 1
    for mark in SENTENCE_ENDS & counts.keys():
        # The end must be the likeliest token, or decoding at temperature 0 would never reach it.
        following = counts[mark]
        following[END] = math.ceil(max(following.total() / 3, 1.1 * max(following.values())))
    counts[""] = Counter(starts or [END])
    counts[ASSISTANT] = Counter([piece.strip() for piece in starts] or [END])
    return counts


def _write_gguf(path: Path, model: Bigram, *, name: str) -> None:
    # These imports take half a second, so only writing a model pays for them.
    import gguf
    import numpy as np

    # Some backends require rows in whole blocks; the padding states are never entered.
    width = math.ceil(len(model.nexts) / 64) * 64
    embedding = np.zeros((len(model.tokens), width), dtype=np.float16)
    embedding[np.arange(len(model.tokens)), model.states] = 1
    output = np.full((len(model.tokens), width), NEVER, dtype=np.float16)
    for state, following in enumerate(model.nexts):
        for token, probability in following.items():
            output[token, state] = math.log(probability)

    def constant(value: float) -> np.ndarray:
        return np.full(width, value, dtype=np.float32)

    def zeros(rows: int, columns: int) -> np.ndarray:
        return np.zeros((rows, columns), dtype=np.float16)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HEAD)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-9)  # negligible next to a mean square of 1/d
    writer.add_vocab_size(len(model.tokens))
    # As an embedding model, it returns the histogram of a text's words.
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    # llama.cpp's own defaults would cut the tail off the distribution.
    writer.add_sampling_temp(1.0)
    writer.add_sampling_top_k(0)
    writer.add_sampling_top_p(1.0)
    writer.add_sampling_min_p(0.0)

    normal = len(model.tokens) - len(CONTROL)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(model.tokens)
    writer.add_token_types(
        [gguf.TokenType.UNKNOWN]
        + [gguf.TokenType.CONTROL] * (len(CONTROL) - 1)
        # Bytes are NORMAL too: llama.cpp aborts on a BYTE token in an rwkv vocabulary.
        + [gguf.TokenType.NORMAL] * normal
    )
    writer.add_unk_token_id(CONTROL.index(UNKNOWN))
    writer.add_eos_token_id(CONTROL.index(END))
    writer.add_pad_token_id(CONTROL.index(END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", constant(1 / math.sqrt(width)))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("blk.0.attn_norm.weight", constant(1.0))
    writer.add_tensor("blk.0.attn_q.weight", zeros(HEAD, width))
    writer.add_tensor("blk.0.attn_k.weight", zeros(HEAD, width))
    writer.add_tensor("blk.0.attn_v.weight", zeros(HEAD, width))
    writer.add_tensor("blk.0.attn_output.weight", zeros(width, HEAD))
    writer.add_tensor("blk.0.ffn_norm.weight", constant(1.0))
    writer.add_tensor("blk.0.ffn_gate.weight", zeros(HEAD, width))
    writer.add_tensor("blk.0.ffn_up.weight", zeros(HEAD, width))
    writer.add_tensor("blk.0.ffn_down.weight", zeros(width, HEAD))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
