"""Selection of the files that make up a function's weights."""

import hashlib

import pytest

from cortex.functions.selection import File, NoSuchWeights, Selection, missing_parts, select, tag
from cortex.functions.sources import Repo

GGUFS = [
    File("README.md", 10),
    File("Qwen3-8B-Q4_K_M.gguf", 400),
    File("Qwen3-8B-Q8_0.gguf", 800),
    File("Qwen3-8B-UD-Q4_K_XL.gguf", 420),
    File("BF16/Qwen3-8B-BF16-00001-of-00002.gguf", 900),
    File("BF16/Qwen3-8B-BF16-00002-of-00002.gguf", 700),
    File("mmproj-Qwen3-8B-F16.gguf", 90),
    File("imatrix_Q4_K_M.gguf", 9),
]
SAFE = [
    File("config.json", 1),
    File("tokenizer.json", 2),
    File("model-00001-of-00002.safetensors", 500),
    File("model-00002-of-00002.safetensors", 400),
    File("model.safetensors.index.json", 3),
    File("consolidated.safetensors", 900),
    File("pytorch_model.bin", 900),
    File("onnx/model.onnx", 900),
    File("original/consolidated.00.pth", 900),
    File("model-Q4_0.gguf", 300),
]


def repo(**keys: str) -> Repo:
    return Repo(repo="org/m", gguf=True, **keys)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("llama-2-7b.Q5_K_S.gguf", "Q5_K_S"),
        ("ggml-model-q4_0.gguf", "Q4_0"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("m-bf16.gguf", "BF16"),
        ("m.fp16.gguf", "F16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q8_0/model.gguf", "Q8_0"),
        ("Q8_0/model-Q6_K.gguf", "Q6_K"),
        ("Qwen3-8B.gguf", ""),
        ("phi-3-mini-128k.gguf", ""),
    ],
)
def test_the_tag_is_read_from_the_file_name(name: str, result: str) -> None:
    assert tag(name) == result


@pytest.mark.parametrize(
    ("source", "entry", "size"),
    [
        (repo(quant="Q4_K_M"), "Qwen3-8B-Q4_K_M.gguf", 400),
        (repo(quant="q8_0"), "Qwen3-8B-Q8_0.gguf", 800),
        (repo(quant="UD-Q4_K_XL"), "Qwen3-8B-UD-Q4_K_XL.gguf", 420),
        (repo(quant="BF16"), "BF16/Qwen3-8B-BF16-00001-of-00002.gguf", 1600),
        (repo(file="Qwen3-8B-Q8_0.gguf"), "Qwen3-8B-Q8_0.gguf", 800),
        (repo(file="BF16/Qwen3-8B-BF16-00001-of-00002.gguf"), "BF16/Qwen3-8B-BF16-00001-of-00002.gguf", 1600),
        (repo(file="BF16/Qwen3-8B-BF16.gguf"), "BF16/Qwen3-8B-BF16-00001-of-00002.gguf", 1600),
        (repo(file="mmproj-Qwen3-8B-F16.gguf"), "mmproj-Qwen3-8B-F16.gguf", 90),
    ],
)
def test_a_gguf_is_selected_by_tag_or_name_with_all_its_parts(source: Repo, entry: str, size: int) -> None:
    chosen = select(source, GGUFS)

    assert (chosen.entry, chosen.size) == (entry, size)


def test_the_only_gguf_needs_no_tag() -> None:
    assert select(repo(), [File("README.md", 1), File("model.gguf", 7)]) == Selection(
        (File("model.gguf", 7),), "model.gguf"
    )


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        (repo(quant="Q5_K_M"), GGUFS, "no GGUF with the tag Q5_K_M; it has BF16, Q4_K_M, Q8_0, UD-Q4_K_XL"),
        (repo(quant="Q5_K_M"), [File("model.gguf", 1)], "none of its files has a tag: model.gguf"),
        (repo(), GGUFS, "select one by `quant`; it has BF16, Q4_K_M"),
        (repo(), SAFE[:2], "has no GGUF file: llama.cpp needs one"),
        (repo(file="Qwen3-8B-Q8.gguf"), GGUFS, "did you mean 'Qwen3-8B-Q8_0.gguf'"),
        (repo(quant="BF16"), GGUFS[:-3], "lacks parts of .*: BF16/Qwen3-8B-BF16-00002-of-00002.gguf"),
        (repo(quant="Q4_0"), [File("a-Q4_0.gguf", 1), File("b-Q4_0.gguf", 1)], r"name one in `source` \(org/m:FILE\)"),
        (Repo(repo="org/m"), GGUFS, 'GGUFs, for `engine = "llamacpp"`'),
        (Repo(repo="org/m"), SAFE[:3], "is incomplete: it lacks model-00002-of-00002.safetensors"),
    ],
)
def test_an_error_for_missing_weights_lists_the_candidates(source: Repo, files: list[File], message: str) -> None:
    with pytest.raises(NoSuchWeights, match=message):
        select(source, files)


def test_a_whole_model_excludes_its_weights_in_other_formats() -> None:
    chosen = select(Repo(repo="org/m"), SAFE)

    assert [f.path for f in chosen.files] == [f.path for f in SAFE[:5]]
    assert chosen.entry == ""


def test_without_safetensors_all_files_but_ggufs_are_selected() -> None:
    files = [File("config.json", 1), File("pytorch_model.bin", 900), File("model-Q4_0.gguf", 300)]

    assert [f.path for f in select(Repo(repo="org/m"), files).files] == ["config.json", "pytorch_model.bin"]


def test_missing_parts_are_derived_from_the_names_of_present_ones() -> None:
    assert missing_parts(["m-00002-of-00003.gguf", "a.json"]) == ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"]


EYES = [File("UD-Q4_K_XL/eyes-UD-Q4_K_XL.gguf", 9), File("mmproj-F16.gguf", 2), File("mmproj-BF16.gguf", 2)]


def test_the_vision_encoder_comes_with_the_model() -> None:
    source = Repo(repo="org/eyes", quant="UD-Q4_K_XL", gguf=True, also="mmproj-F16.gguf")

    selection = select(source, EYES)

    assert (selection.entry, selection.also, selection.size) == (EYES[0].path, "mmproj-F16.gguf", 11)


def test_an_encoder_that_is_not_there_is_refused_with_those_that_are() -> None:
    source = Repo(repo="org/eyes", quant="UD-Q4_K_XL", gguf=True, also="mmproj-F15.gguf")

    with pytest.raises(NoSuchWeights, match=r"no mmproj mmproj-F15\.gguf; did you mean .mmproj-F16\.gguf"):
        select(source, EYES)


def test_a_source_without_an_encoder_has_the_key_that_it_had() -> None:
    plain = Repo(repo="org/eyes", quant="Q4", gguf=True)

    assert plain.key == "org--eyes-" + hashlib.sha256(b"org/eyes   Q4 True").hexdigest()[:12]
    assert Repo(repo="org/eyes", quant="Q4", gguf=True, also="m.gguf").key != plain.key
