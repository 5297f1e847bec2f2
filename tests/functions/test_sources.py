"""Sources of weights: valid and invalid forms."""

from typing import Any

import pytest

from cortex.functions.catalogue import notes, read
from cortex.functions.sources import BadSource, Demo, Local, Nothing, Repo, source_of
from cortex.functions.spec import Engine, Function

LLAMA, VLLM, FAKE, COMMAND = Engine.LLAMACPP, Engine.VLLM, Engine.FAKE, Engine.COMMAND


@pytest.mark.parametrize(
    ("engine", "keys", "source"),
    [
        (FAKE, {"source": "anything at all"}, Nothing()),
        (COMMAND, {}, Nothing()),
        (COMMAND, {"source": "org/model", "command": ("serve", "{source}")}, Repo(repo="org/model")),
        (LLAMA, {"source": "demo:harbour"}, Demo("harbour")),
        (LLAMA, {"source": "/srv/m.gguf"}, Local("/srv/m.gguf")),
        (VLLM, {"source": "~/m"}, Local("~/m")),
        (VLLM, {}, Repo(repo="org/id")),
        (VLLM, {"source": "org/m", "revision": "v1"}, Repo(repo="org/m", revision="v1")),
        (VLLM, {"source": "org/m", "quant": "awq"}, Repo(repo="org/m")),
        (LLAMA, {"source": "org/m"}, Repo(repo="org/m", gguf=True)),
        (LLAMA, {"source": "org/m", "quant": "Q4_K_M"}, Repo(repo="org/m", quant="Q4_K_M", gguf=True)),
        (LLAMA, {"source": "org/m:Q4_K_M"}, Repo(repo="org/m", quant="Q4_K_M", gguf=True)),
        (LLAMA, {"source": "org/m:a/b.gguf"}, Repo(repo="org/m", file="a/b.gguf", gguf=True)),
        (LLAMA, {"source": "org/m:b.gguf", "quant": "Q8_0"}, Repo(repo="org/m", file="b.gguf", gguf=True)),
        (VLLM, {"source": "org/m:b.gguf"}, Repo(repo="org/m", file="b.gguf", gguf=True)),
    ],
)
def test_a_source_is_parsed_by_its_form(engine: Engine, keys: dict[str, Any], source: object) -> None:
    assert source_of(Function(id="org/id", engine=engine, **keys)) == source


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "model"}, "neither a path"),
        ({"source": "a/b/c"}, "neither a path"),
        ({"source": "../m.gguf"}, "neither a path"),
        ({"source": "https://x.org/m"}, "neither a path"),
        ({"source": "org/.."}, "neither a path"),
        ({"source": "org/m:"}, "names no file"),
        ({"source": "org/m:../../x.gguf"}, "names no file"),
        ({"source": "org/m:/etc/passwd.gguf"}, "names no file"),
        ({"source": "org/m:Q4_K_M", "quant": "Q8_0"}, "'org/m:Q4_K_M' and quant = 'Q8_0' contradict each other"),
    ],
)
def test_an_invalid_source_is_an_error_with_the_valid_forms(keys: dict[str, str], message: str) -> None:
    with pytest.raises(BadSource, match=message):
        source_of(Function(id="org/id", engine=LLAMA, **keys))  # type: ignore[arg-type]


def test_equal_sources_share_a_key_that_is_a_path_segment() -> None:
    first = source_of(Function(id="a", engine=LLAMA, source="org/m:Q4_K_M"))
    same = source_of(Function(id="b", engine=LLAMA, source="org/m", quant="Q4_K_M"))
    second = source_of(Function(id="b", engine=LLAMA, source="org/m", quant="Q4_K_M", revision="v2"))

    assert isinstance(first, Repo)
    assert isinstance(same, Repo)
    assert isinstance(second, Repo)
    assert first.key == same.key != second.key
    assert "/" not in first.key
    assert (str(first), str(second)) == ("org/m:Q4_K_M", "org/m@v2:Q4_K_M")


def test_the_notes_of_a_catalogue_list_invalid_sources() -> None:
    catalogue = read('[[models]]\nid = "m"\nengine = "vllm"', file="models.toml", folder="/")

    assert notes(catalogue) == [
        "m: 'm' is neither a path (/… or ./…) nor a HuggingFace repository (org/name): give the function a `source`"
    ]
