"""Facts from weights: GGUF heads, HuggingFace folders, and a worker's models list."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from cortex.functions.capabilities import ModelProfile, Template
from cortex.platform import served_model
from cortex.platform.served_model import ServedModel
from cortex.platform.weights import gguf_head
from cortex.platform.weights.demo_model import CHAT_TEMPLATE, CONTEXT_LENGTH, write_bigram
from cortex.platform.weights.gguf_head import BadGguf
from cortex.platform.weights.model_facts import ModelFacts
from tests.support.factories import a_function

PROFILE = ModelProfile(template=Template(tools=True))


class FakeProbe:
    """Replaces the probe process; records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def __call__(self, template: str, bos: str, eos: str) -> ModelProfile:
        self.calls.append((template, bos, eos))
        return PROFILE


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_bigram(tmp_path / "tiny.gguf", "Alpha bravo. Alpha charlie.", name="tiny")
    return tmp_path / "tiny.gguf"


def test_a_head_matches_the_reference_reader(tiny: Path) -> None:
    reference = GGUFReader(tiny)
    scalars = {n: f.contents() for n, f in reference.fields.items() if not n.startswith("GGUF.") and len(f.types) == 1}

    assert gguf_head.read(tiny) == scalars


def test_a_truncated_head_is_refused(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    head = whole.find(b"tokenizer.ggml.scores") if b"tokenizer.ggml.scores" in whole else 2000
    cut = tmp_path / "cut.gguf"

    for size in range(1, head, 97):
        cut.write_bytes(whole[:size])
        with pytest.raises(BadGguf):
            gguf_head.read(cut)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GGUF",
        b"PK\3\4" + bytes(64),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + bytes(64),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**62) + bytes(64),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77) + bytes(64),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 40,
    ],
    ids=["empty", "short", "another", "keys", "a long name", "a long array", "a strange type", "nested arrays"],
)
def test_an_invalid_head_is_refused(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(head)

    with pytest.raises(BadGguf):
        gguf_head.read(tmp_path / "x.gguf")


def test_the_number_of_nested_arrays_is_bounded(tmp_path: Path) -> None:
    begin = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 9)
    for count in (99_999, 100_000):
        arrays = struct.pack("<IQ", 9, count) + struct.pack("<IQ", 0, 0) * count
        (tmp_path / f"{count}.gguf").write_bytes(begin + arrays)

    assert gguf_head.read(tmp_path / "99999.gguf") == {}
    with pytest.raises(BadGguf, match="100000 arrays"):
        gguf_head.read(tmp_path / "100000.gguf")


def test_the_total_number_of_texts_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_head, "_MOST_TEXTS", 10)
    array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 6) + struct.pack("<Q", 0) * 6
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + array * 2)

    with pytest.raises(BadGguf, match="10 texts"):
        gguf_head.read(tmp_path / "x.gguf")


def test_a_gguf_gives_its_context_and_its_template_is_probed(tiny: Path) -> None:
    probe = FakeProbe()

    facts = ModelFacts(probe).of(a_function(), str(tiny))

    assert facts == ModelProfile(template=PROFILE.template, context=CONTEXT_LENGTH, vision=False)
    assert [call[0] for call in probe.calls] == [CHAT_TEMPLATE]


@pytest.mark.parametrize("keys", [{"args": ("--mmproj", "/eyes.gguf")}, {"mmproj": "/eyes.gguf"}])
def test_a_gguf_with_a_vision_projector_has_vision(tiny: Path, keys: Any) -> None:
    facts = ModelFacts(FakeProbe()).of(a_function(**keys), str(tiny))

    assert facts is not None
    assert facts.vision is True


def test_an_operators_template_replaces_the_models_own(tiny: Path, tmp_path: Path) -> None:
    probe = FakeProbe()
    (tmp_path / "own.jinja").write_text("OWN")

    ModelFacts(probe).of(a_function(chat_template=str(tmp_path / "own.jinja")), str(tiny))
    missing = ModelFacts(probe).of(a_function(chat_template="/nowhere.jinja"), str(tiny))

    assert probe.calls[1][0] == "OWN"
    assert missing is not None
    assert missing.template == Template()


def test_weights_are_read_again_only_after_a_change(tiny: Path) -> None:
    probe = FakeProbe()
    cached = ModelFacts(probe)

    cached.of(a_function(), str(tiny))
    cached.of(a_function("org/other"), str(tiny))
    before = len(probe.calls)
    write_bigram(tiny, "Another text. Quite another.", name="tiny")
    cached.of(a_function(), str(tiny))

    assert (before, len(probe.calls)) == (1, 2)


def a_folder(folder: Path, config: Any = None, tokenizer: Any = None, template: str = "") -> Path:
    (folder / "config.json").write_text(json.dumps(config or {"max_position_embeddings": 4096}))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer or {}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_huggingface_folder_gives_context_and_template(tmp_path: Path) -> None:
    probe = FakeProbe()
    tokenizer = {"chat_template": "T", "bos_token": {"content": "<b>"}, "eos_token": "<e>"}

    facts = ModelFacts(probe).of(a_function(), str(a_folder(tmp_path, tokenizer=tokenizer)))

    assert facts == ModelProfile(template=PROFILE.template, context=4096, vision=False)
    assert probe.calls == [("T", "<b>", "<e>")]


@pytest.mark.parametrize(
    ("tokenizer", "template", "tried"),
    [
        ({"chat_template": "T"}, "FILE", "FILE"),
        ({"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}, "", "D"),
        ({"chat_template": [{"name": "rag", "template": "R"}]}, "", "R"),
    ],
    ids=["a file of its own", "a named default", "no default"],
)
def test_one_of_several_templates_is_chosen(tmp_path: Path, tokenizer: Any, template: str, tried: str) -> None:
    probe = FakeProbe()

    ModelFacts(probe).of(a_function(), str(a_folder(tmp_path, tokenizer=tokenizer, template=template)))

    assert [call[0] for call in probe.calls] == [tried]


def test_a_vision_model_reads_its_context_from_the_text_config(tmp_path: Path) -> None:
    config = {"vision_config": {}, "text_config": {"max_position_embeddings": 8192}}

    facts = ModelFacts(FakeProbe()).of(a_function(), str(a_folder(tmp_path, config)))

    assert facts == ModelProfile(context=8192, vision=True)


@pytest.mark.parametrize("weights", ["", "/nowhere/at/all.gguf"])
def test_missing_weights_give_no_facts(weights: str) -> None:
    assert ModelFacts(FakeProbe()).of(a_function(), weights) is None


def test_invalid_weights_give_no_facts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    assert ModelFacts(FakeProbe()).of(a_function(), str(tmp_path)) is None


def test_the_demo_models_template_is_probed_in_a_process(tiny: Path) -> None:
    facts = ModelFacts().of(a_function(), str(tiny))

    assert facts is not None
    assert facts.template.inline_system is True
    assert facts.template.tools is False


@pytest.mark.parametrize(
    ("entry", "card"),
    [
        ({"id": "m", "max_model_len": 32768}, ServedModel(32768)),
        (
            {"id": "m", "meta": {"n_ctx": 2048}, "architecture": {"input_modalities": ["text", "image"]}},
            ServedModel(2048, vision=True),
        ),
        ({"id": "m", "architecture": {"input_modalities": ["text"]}}, ServedModel(vision=False)),
        ({"id": "m", "meta": None, "max_model_len": "many"}, ServedModel()),
        ({"id": "m"}, ServedModel()),
    ],
    ids=["vllm", "llama-server", "blind", "nonsense", "silent"],
)
def test_a_workers_models_list_gives_context_and_vision(entry: Any, card: ServedModel) -> None:
    assert served_model.read(json.dumps({"object": "list", "data": [entry]}).encode()) == {"m": card}


@pytest.mark.parametrize("models", [None, [], {}, {"data": None}, {"data": [1]}])
def test_an_invalid_models_list_is_empty(models: Any) -> None:
    assert served_model.read(json.dumps(models).encode()) == {}
