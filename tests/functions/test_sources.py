"""Where weights come from: what an operator may write, and what it means."""

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
def test_a_source_is_read_as_what_it_is(engine: Engine, keys: dict[str, Any], source: object) -> None:
    assert source_of(Function(id="org/id", engine=engine, **keys)) == source


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"source": "model"}, "neither a path"),
        ({"source": "a/b/c"}, "neither a path"),
        ({"source": "../m.gguf"}, "neither a path"),
        ({"source": "https://x.org/m"}, "neither a path"),
        ({"source": "org/.."}, "neither a path"),
        ({"source": "org/m:"}, "names no file"),
        ({"source": "org/m:../../x.gguf"}, "names no file"),
        ({"source": "org/m:/etc/passwd.gguf"}, "names no file"),
        ({"source": "org/m:Q4_K_M", "quant": "Q8_0"}, "says Q4_K_M and `quant` says Q8_0"),
    ],
)
def test_what_is_no_source_says_what_could_be_one(keys: dict[str, str], said: str) -> None:
    with pytest.raises(BadSource, match=said):
        source_of(Function(id="org/id", engine=LLAMA, **keys))  # type: ignore[arg-type]


def test_equal_sources_share_a_key_that_is_a_path_segment() -> None:
    one = source_of(Function(id="a", engine=LLAMA, source="org/m:Q4_K_M"))
    same = source_of(Function(id="b", engine=LLAMA, source="org/m", quant="Q4_K_M"))
    other = source_of(Function(id="b", engine=LLAMA, source="org/m", quant="Q4_K_M", revision="v2"))

    assert isinstance(one, Repo)
    assert isinstance(same, Repo)
    assert isinstance(other, Repo)
    assert one.key == same.key != other.key
    assert "/" not in one.key
    assert (str(one), str(other)) == ("org/m:Q4_K_M", "org/m@v2:Q4_K_M")


def test_a_check_of_the_catalogue_tells_of_sources_that_lead_nowhere() -> None:
    catalogue = read('[[models]]\nid = "m"\nengine = "vllm"', file="models.toml", folder="/")

    assert notes(catalogue) == [
        "m: 'm' is neither a path (/… or ./…) nor a HuggingFace repository (org/name): give the function a `source`"
    ]
