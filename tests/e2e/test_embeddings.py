"""Embeddings and reranking by a real llama.cpp through the router."""

import math
from collections.abc import Sequence

import openai
import pytest

from tests.e2e.workers import TWO
from tests.support.stack import Stack

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)

TEXTS = ["red boat", "the boat lies still", "bread at dawn"]


def likeness(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_similar_texts_have_similar_embeddings(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)

    answer = client.embeddings.create(model="tiny/embeds", input=TEXTS)

    boat, still, bread = (one.embedding for one in answer.data)
    assert answer.model == "tiny/embeds"
    assert answer.usage.prompt_tokens > len(TEXTS)
    assert likeness(boat, still) > 0.3 > 0.1 > likeness(boat, bread)


@pytest.mark.parametrize("texts", [TEXTS[0], TEXTS[:1]], ids=["a text", "a list"])
def test_an_embedding_is_equal_in_every_encoding(stack: Stack, texts: str | list[str]) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    body = {"model": "tiny/embeds", "input": texts}

    packed = client.embeddings.create(model="tiny/embeds", input=texts)  # the SDK asks for base64 and unpacks it
    encoded = stack.http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    numbers = stack.http.post("/v1/embeddings", json={**body, "encoding_format": "float"}).json()
    unsaid = stack.http.post("/v1/embeddings", json=body).json()

    assert isinstance(encoded["data"][0]["embedding"], str)
    assert numbers["data"][0]["embedding"] == unsaid["data"][0]["embedding"]
    assert packed.data[0].embedding == pytest.approx(numbers["data"][0]["embedding"], abs=1e-6)


def test_documents_with_the_querys_words_rank_first(stack: Stack) -> None:
    documents = ["Fish swim under the pier.", "The keeper lights a lamp at night.", "Bread is baked at dawn."]
    body = {"model": "tiny/reranks", "query": "keeper lamp night", "documents": documents}

    answer = stack.http.post("/v1/rerank", json=body)
    first = stack.http.post("/v1/rerank", json={**body, "top_n": 1})

    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "tiny/reranks"
    assert sorted(r["index"] for r in answer.json()["results"]) == [0, 1, 2]
    best = max(answer.json()["results"], key=lambda r: r["relevance_score"])
    assert best["index"] == 1
    assert [r["index"] for r in first.json()["results"]] == [1]


def test_a_chat_with_an_embedding_model_is_rejected_without_a_start(stack: Stack) -> None:
    answer = stack.chat("tiny/embeds")

    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
