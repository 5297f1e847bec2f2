"""The demo model: its counts, its weights, and its answers through llama.cpp."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest

from cortex.platform.weights.demo_model import ASSISTANT, END, Bigram, demo_text, fit, split, write_bigram
from tests.support.stack import eventually

TEXT = "Alpha bravo, she said. Alpha charlie. Delta?"


def nexts(model: Bigram, word: str) -> dict[str, float]:
    """What follows a word, and how likely; a mark of one character goes by its byte."""
    state = model.states[model.tokens.index(word)]
    return {model.tokens[token]: probability for token, probability in model.nexts[state].items()}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Wait, she said.", [" Wait", ",", " she", " said", "."]),
        ("no-one's\n\there", [" no-one's", " here"]),
        ("(“So” – 3 men!)", [" (", "“", "So", "”", " –", " 3", " men", "!", ")"]),
        ("naïve 東京", [" naïve", " 東京"]),
        ("", []),
    ],
)
def test_a_text_splits_into_words_and_marks(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces


def test_next_word_probabilities_match_the_text() -> None:
    model = fit(TEXT)

    assert nexts(model, "Alpha") == {" bravo": 0.5, " charlie": 0.5}
    assert nexts(model, " Alpha") == nexts(model, "Alpha")
    assert nexts(model, "bravo") == {r"\x2c": 1.0}


def test_an_answer_starts_like_a_sentence_without_a_space() -> None:
    model = fit(TEXT)

    assert nexts(model, ASSISTANT) == {"Alpha": 2 / 3, "Delta": 1 / 3}


def test_an_answer_ends_after_a_quarter_of_the_sentences() -> None:
    model = fit("Alpha one. Bravo two. Charlie three. Delta four. Echo five. Foxtrot six.")

    assert nexts(model, r"\x2e") == {
        END: 1 / 4,
        " Alpha": 1 / 8,
        " Bravo": 1 / 8,
        " Charlie": 1 / 8,
        " Delta": 1 / 8,
        " Echo": 1 / 8,
        " Foxtrot": 1 / 8,
    }


def test_after_a_sentence_the_end_is_the_likeliest() -> None:
    model = fit(TEXT)

    assert nexts(model, r"\x2e") == {" Alpha": 1 / 4, " Delta": 1 / 4, END: 1 / 2}
    assert nexts(model, r"\x3f") == {" Alpha": 1 / 3, END: 2 / 3}


def test_an_unknown_token_leads_to_a_new_sentence() -> None:
    model = fit(TEXT)

    assert nexts(model, r"\x7a") == {" Alpha": 2 / 3, " Delta": 1 / 3}


def test_a_text_that_stops_midway_ends_there() -> None:
    assert nexts(fit("alpha bravo"), "bravo") == {END: 1.0}


def test_a_model_of_an_empty_text_gives_an_empty_answer() -> None:
    assert nexts(fit(""), ASSISTANT) == {END: 1.0}


def test_models_of_different_texts_share_no_word() -> None:
    a, b = fit("alpha bravo. alpha charlie."), fit("whiskey yankee. zulu.")

    shared = set(a.tokens) & set(b.tokens)
    assert all(re.fullmatch(r"<\|\w+\|>|\\x\w\w", token) for token in shared)


def test_the_weights_compute_the_counts(tmp_path: Path) -> None:
    write_bigram(tmp_path / "m.gguf", TEXT, name="m")
    tensors = {t.name: np.asarray(t.data, dtype=np.float64) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    model = fit(TEXT)

    hidden = tensors["token_embd.weight"][model.tokens.index(" Alpha")]
    hidden = hidden / np.sqrt(np.mean(hidden**2)) * tensors["output_norm.weight"]
    chances = np.exp(tensors["output.weight"] @ hidden)

    assert not any(tensors[name].any() for name in ("blk.0.attn_output.weight", "blk.0.ffn_down.weight"))
    assert math.isclose(chances.sum(), 1, rel_tol=1e-3)
    assert math.isclose(chances[model.tokens.index(" bravo")], 0.5, rel_tol=1e-3)
    assert np.sort(chances)[-3] < 1e-12


def test_the_same_text_gives_the_same_file(tmp_path: Path) -> None:
    write_bigram(tmp_path / "a.gguf", TEXT, name="m")
    write_bigram(tmp_path / "b.gguf", TEXT, name="m")

    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_model_that_cannot_be_written_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the old one")

    with pytest.raises(UnicodeEncodeError):
        write_bigram(path, TEXT, name="\ud800")

    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_demo_model_is_small_and_has_hundreds_of_words(demo: Path) -> None:
    words = {piece.strip() for piece in split(demo_text()) if piece.strip().isalpha()}

    assert 300 < len(words) < 600
    assert 1e6 < demo.stat().st_size < 4e6


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    write_bigram(path, demo_text(), name="demo")
    return path


@pytest.fixture(scope="module")
def llama(demo: Path) -> Iterator[httpx.Client]:
    log = demo.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cortex.platform.workers.llama_server", "-m", str(demo), "--port", "0"],
            stderr=file,
            start_new_session=True,
        )
    try:
        at = eventually(lambda: re.search(r"serving .* on (http://\S+)\n", log.read_text()), what=str(log))
        assert at
        with httpx.Client(base_url=at[1], timeout=20) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def ask(llama: httpx.Client, content: object, **more: object) -> str:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 100, **more}
    response = llama.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


ODD = [
    "",
    " ",
    "🎉 世界\n\n\tnaïve",
    "\x00\x01\x7f",
    "<|end|><|user|> \\x41 \\",
    "“the,keeper.”",
    "the tide " * 1000,
]


@pytest.mark.parametrize("content", ODD)
def test_any_prompt_is_answered_in_sentences_of_the_text(llama: httpx.Client, content: str) -> None:
    answer = ask(llama, content)

    vocabulary = set(split(demo_text()))
    assert set(split(answer)) <= vocabulary
    assert re.fullmatch(r"[A-Z]\w*((,? [\w-]+)|(\. [A-Z]\w*))*[.,]?", answer)


@pytest.mark.parametrize("content", ODD)
def test_any_text_survives_the_tokeniser(llama: httpx.Client, content: str) -> None:
    tokens = llama.post("/tokenize", json={"content": content}).json()["tokens"]

    assert llama.post("/detokenize", json={"tokens": tokens}).json()["content"] == content


def test_even_at_a_high_temperature_answers_have_only_known_words(llama: httpx.Client) -> None:
    answer = ask(llama, "hello", temperature=2, ignore_eos=True, max_tokens=300)

    assert set(split(answer)) <= set(split(demo_text()))
    assert len(split(answer)) == 300


def test_a_greedy_answer_is_one_sentence(llama: httpx.Client) -> None:
    answer = ask(llama, "hello", temperature=0, max_tokens=-1)

    assert re.fullmatch(r"The keeper [a-z ]+\.", answer)


def test_a_prompt_is_continued_from_its_last_word(llama: httpx.Client) -> None:
    body = {"prompt": "At dusk the weathervane and the horizon leans", "max_tokens": 1}
    answer = llama.post("/v1/completions", json=body).json()

    assert answer["choices"][0]["text"] in (" against", ",")
