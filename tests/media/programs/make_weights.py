"""`make_weights.py FOLDER`: a Whisper for CTranslate2 and a voice for Piper, of a few hundred kilobytes each.

They understand nothing. The Whisper says one sentence about any audio: its attention is zero, so each token leads to
the next one of the sentence. The voice makes a tone for each phoneme. What is around them is real: audio is decoded and
becomes a spectrogram, a text becomes phonemes, tokens are searched and written as text.

It runs in the servers' own Python, which has ctranslate2 and onnx.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from ctranslate2.specs import whisper_spec
from onnx import TensorProto, helper
from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from byte_tokenizer import END, byte_tokens, tokenizer

SENTENCE = "The harbour is quiet tonight."
WIDTH, MELS, FRAMES, ANSWER = 64, 80, 1500, 448
LANGUAGE = "<|en|>"
SPECIAL = (END, "<|startoftranscript|>", LANGUAGE, "<|translate|>", "<|transcribe|>", "<|startoflm|>")
SPECIAL = (*SPECIAL, "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = tuple(f"<|{number * 0.02:.2f}|>" for number in range(1501))
SURE = 8.0
RATE, SAMPLES = 22050, 1764
"""Samples per second of the voice, and of each phoneme."""


def main() -> None:
    folder = Path(sys.argv[1])
    write_whisper(folder / "whisper")
    write_voice(folder / "local-tts")


def write_whisper(folder: Path) -> None:
    words = [("Ġ" if number else "") + word for number, word in enumerate(SENTENCE.split())]
    plain = [*byte_tokens(), *words]
    tokens = [*plain, *SPECIAL, *TIMES]
    ids = {token: number for number, token in enumerate(tokens)}
    path = [*words, "<|1.00|>", END]
    follows = {"<|startoftranscript|>": "<|0.00|>", "<|0.00|>": words[0], "<|notimestamps|>": words[0]}
    follows |= dict(itertools.pairwise(path))
    embedding = np.zeros((len(tokens), WIDTH), np.float32)
    projection = np.zeros((len(tokens), WIDTH), np.float32)
    embedding[:, 0] = 1  # the state of every token that is not on the path: the end follows
    projection[ids[END], 0] = SURE
    for state, (token, following) in enumerate(follows.items(), start=1):
        embedding[ids[token]] = np.eye(WIDTH)[state]
        projection[ids[following], state] = SURE

    spec = whisper_spec.WhisperSpec(1, 1, 1, 1)
    fill(spec.encoder.conv1, (WIDTH, MELS, 3))
    fill(spec.encoder.conv2, (WIDTH, WIDTH, 3))
    spec.encoder.position_encodings.encodings = np.zeros((FRAMES, WIDTH), np.float32)
    spec.decoder.position_encodings.encodings = np.zeros((ANSWER, WIDTH), np.float32)
    spec.decoder.embeddings.weight = embedding
    spec.decoder.projection.weight = projection
    for norm in (spec.encoder.layer_norm, spec.decoder.layer_norm):
        fill_norm(norm)
    for layer in (*spec.encoder.layer, *spec.decoder.layer):
        attentions = [layer.self_attention, *([layer.attention] if hasattr(layer, "attention") else [])]
        for attention in attentions:
            fill_norm(attention.layer_norm)
            parts = (3, 1) if len(attention.linear) == 2 else (1, 2, 1)
            for linear, part in zip(attention.linear, parts, strict=True):
                fill(linear, (part * WIDTH, WIDTH))
        fill_norm(layer.ffn.layer_norm)
        fill(layer.ffn.linear_0, (WIDTH, WIDTH))
        fill(layer.ffn.linear_1, (WIDTH, WIDTH))
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = []
    spec.config.lang_ids = [ids[LANGUAGE]]
    spec.config.alignment_heads = [(0, 0)]
    spec.validate()
    folder.mkdir(parents=True)
    spec.save(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(plain, (*SPECIAL, *TIMES))))


def fill(layer: object, shape: tuple[int, ...]) -> None:
    layer.weight = np.zeros(shape, np.float32)
    layer.bias = np.zeros(shape[0], np.float32)


def fill_norm(layer: object) -> None:
    layer.gamma = np.ones(WIDTH, np.float32)
    layer.beta = np.zeros(WIDTH, np.float32)


def write_voice(folder: Path) -> None:
    """Write a voice into the data folder of `local-tts`, whose settings name it."""
    time = (np.arange(SAMPLES, dtype=np.float32) / RATE)[None, :]
    values = {
        "step": np.float32(2 * np.pi * 10),
        "time": time,
        "last": np.int64([-1]),
        "shape": np.int64([1, 1, 1, -1]),
    }
    values["column"] = np.int64([-1, 1])
    nodes = [
        helper.make_node("Cast", ["input"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "column"], ["rows"]),
        helper.make_node("Mul", ["rows", "step"], ["tones"]),
        helper.make_node("Mul", ["tones", "time"], ["phases"]),
        helper.make_node("Sin", ["phases"], ["waves"]),
        helper.make_node("Reshape", ["waves", "shape"], ["output"]),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "samples"])
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "tones", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    voices = folder / "voices"
    voices.mkdir(parents=True)
    onnx.save(model, str(voices / "tones.onnx"))
    config = {
        "audio": {"sample_rate": RATE},
        "espeak": {"voice": "en-us"},
        "phoneme_type": "espeak",
        "num_symbols": 256,
        "num_speakers": 1,
        "phoneme_id_map": DEFAULT_PHONEME_ID_MAP,
    }
    (voices / "tones.onnx.json").write_text(json.dumps(config))
    (folder / "settings.json").write_text(json.dumps({"api_default_voice": "tones"}))


if __name__ == "__main__":
    main()
