"""Variants: what they inherit, what they may set, and the strongest wish of those that share instances."""

import json

import pytest
from msgspec.structs import replace

from cortex.functions import arguments
from cortex.functions.capabilities import Sampling
from cortex.functions.catalogue import Catalogue, CatalogueError, notes, read
from cortex.functions.explanation import explain
from cortex.functions.sources import source_of
from cortex.functions.spec import Adapter, Function, revision
from cortex.functions.variants import (
    NOT_INHERITED,
    OWN,
    WISHES,
    adapter_name,
    adapter_number,
    fold,
    with_adapters,
    with_instances,
)
from tests.functions.test_spec import CHANGES
from tests.support.catalogues import aliases, entry, fake

BASE = fake("base", "--load-s", "0", vram_mb=1000, queue=7, priority=2, idle_after_s=60)


def load(text: str) -> Catalogue:
    return read(text, file="models.toml", folder="/etc/cortex")


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        load(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_variant_has_the_values_of_its_base_for_keys_that_it_omits() -> None:
    text = entry("calm", variant_of="base", sampling={"temperature": 0.1}, queue=3) + BASE

    calm = load(text).functions["calm"]

    assert (calm.base_id, calm.engine, calm.args, calm.vram_mb, calm.priority) == (
        "base",
        "fake",
        ("--load-s", "0"),
        1000,
        2,
    )
    assert (calm.sampling, calm.queue) == (Sampling(temperature=0.1), 3)
    assert calm.weights == "base"


def test_a_variant_does_not_inherit_the_wishes_of_its_base_twice() -> None:
    base = fake("base", min=1, pinned=True, baseline=True, warm="08:00-18:00 UTC")

    variant = load(base + entry("v", variant_of="base")).functions["v"]

    assert (variant.min, variant.pinned, variant.baseline, variant.warm) == (0, False, False, "")


def test_functions_keep_the_order_of_the_file() -> None:
    catalogue = load(entry("v", variant_of="base") + BASE + fake("other"))

    assert list(catalogue.functions) == ["v", "base", "other"]
    assert list(catalogue.hosted.functions) == list(with_instances(catalogue.functions)) == ["base", "other"]


@pytest.mark.parametrize("key", [k for k in CHANGES if k not in (*OWN, *WISHES, "adapters")])
def test_a_key_of_the_process_is_an_error_with_its_line(key: str) -> None:
    value = json.loads(json.dumps(CHANGES[key]))

    (problem,) = problems(BASE + entry("v", variant_of="base", **{key: value}))

    line = BASE.count("\n") + 4
    assert problem.startswith(f"models.toml:{line}: v: {key} is ")
    assert key == "native" or problem.endswith("whose instances serve this variant: set it there, or leave it out")


@pytest.mark.parametrize(
    "key", [k for k in (*OWN, *WISHES) if k not in ("id", "variant_of", "adapter", "template", "cost")]
)
def test_every_other_key_may_be_set(key: str) -> None:
    value = {"temperature": 0.5} if key == "sampling" else json.loads(json.dumps(CHANGES[key]))

    variant = load(BASE + entry("v", variant_of="base", **{key: value})).functions["v"]

    assert getattr(variant, key) == CHANGES[key]


OF_V, OF_W = entry("v", variant_of="w"), entry("w", variant_of="base")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (entry("v", variant_of="bsae"), "variant_of: 'bsae' is not in the catalogue; did you mean 'base'?"),
        (
            entry("v", variant_of="v"),
            "a function cannot be a variant of itself: name the function whose instances serve it",
        ),
        (OF_W + OF_V, "variant_of: 'w' is a variant itself: name its base, 'base'"),
        (OF_V + aliases({"w": "base"}), "variant_of: 'w' is an alias: name its function, 'base'"),
        (entry("v", variant_of="base", min=2), "min = 2 is more than max = 1"),
        (entry("v", variant_of=3), "variant_of: Expected `str`, got `int`"),
        (
            OF_W + '[aliases]\nv2 = { use = "base", on_cold = { use = "w" } }\n',
            "on_cold: 'w' shares the instances of the function itself, so both are cold: name another one",
        ),
    ],
)
def test_a_variant_that_cannot_be_served_is_an_error_with_the_fix(text: str, what: str) -> None:
    (problem,) = problems(BASE + text)

    assert problem.endswith(f": {what}")
    assert problem.startswith("models.toml:")


def test_a_circle_of_variants_is_an_error_of_each() -> None:
    reported = problems(entry("a", variant_of="b") + entry("b", variant_of="a"))

    assert reported == [
        "models.toml:3: a: variant_of: leads in a circle: a → b → a",
        "models.toml:6: b: variant_of: leads in a circle: b → a → b",
    ]


def test_a_variant_of_an_invalid_function_is_no_second_problem() -> None:
    (problem,) = problems(fake("base", min=3) + entry("v", variant_of="base"))

    assert "min = 3 is more than max = 1" in problem


def test_shared_instances_follow_the_strongest_wish() -> None:
    text = fake("base", max=2, priority=1, idle_after_s=60) + fake("other")
    text += entry("v", variant_of="base", min=1, priority=5, keep_alive_max_s=900)
    text += entry("w", variant_of="base", pinned=True, baseline=True, idle_after_s=300)

    functions = fold(load(text).functions)

    base, v, w = functions["base"], functions["v"], functions["w"]
    assert (base.min, base.pinned, base.baseline, base.priority) == (1, True, True, 5)
    assert (base.idle_after_s, base.keep_alive_max_s) == (300, 900)
    assert (w.min, w.max, w.pinned, w.priority, w.idle_after_s) == (1, 2, True, 5, 300)
    assert (v.keep_alive_max_s, v.idle_after_s, w.keep_alive_max_s) == (900, 60, 0)  # each bounds its own requests
    assert functions["other"] == load(fake("other")).functions["other"]


def test_a_wish_that_is_weaker_than_that_of_the_base_is_reported() -> None:
    text = fake("base", idle_after_s=60) + entry("v", variant_of="base", idle_after_s=10)

    assert notes(load(text)) == ["v: idle_after_s = 10 is kept, but that of 'base' is stronger: 60"]


def test_each_value_of_a_variant_is_explained_by_the_entry_that_it_comes_from() -> None:
    text = (
        "[defaults]\nqueue = 9\n" + fake("base", context=100, min=0) + entry("v", variant_of="base", sampling={}, min=1)
    )
    catalogue = load(text)

    _, of_variant = explain(text, catalogue, "v") or (None, [])
    _, of_base = explain(text, catalogue, "base") or (None, [])

    variant = {v.key: (v.value, v.table, v.line, v.of) for v in of_variant}
    assert variant["context"] == (100, "models", 7, "base")
    assert variant["queue"] == (9, "defaults", 2, "base")
    assert variant["sampling"] == ({}, "models", 12, "")
    assert variant["pinned"] == (False, "", None, "")
    assert {v.key: (v.value, v.line, v.of) for v in of_base}["min"] == (1, 13, "v")


def test_a_key_that_a_variant_does_not_inherit_has_a_neutral_value() -> None:
    plain = Function(id="f", engine=load(BASE).functions["base"].engine)

    assert {k: getattr(plain, k) for k in NOT_INHERITED} == dict(NOT_INHERITED)


LLAMA = entry("base", engine="llamacpp", source="org/base-GGUF:Q4_K_M")


def test_an_adapter_is_a_variant_with_weights_of_its_own() -> None:
    text = LLAMA + entry("v", base="base", adapter="./a.gguf") + entry("w", variant_of="base", adapter="org/adapter")

    functions = load(text).functions
    folded = fold(functions)

    assert (functions["v"].variant_of, functions["v"].adapter) == ("base", "/etc/cortex/a.gguf")
    assert functions["w"].adapter == "org/adapter"
    assert folded["base"].adapters == (Adapter("v", "/etc/cortex/a.gguf"), Adapter("w", "org/adapter"))
    assert folded["v"].adapters == ()
    assert [(f.id, f.weights, str(source_of(f))) for f in with_adapters(with_instances(folded).values())] == [
        ("base", "org/base-GGUF:Q4_K_M", "org/base-GGUF:Q4_K_M"),
        ("v", "/etc/cortex/a.gguf", "Local(path='/etc/cortex/a.gguf')"),
        ("w", "org/adapter", "org/adapter"),
    ]


def test_vllm_has_adapters_too_and_their_change_is_no_new_revision() -> None:
    base = entry("base", engine="vllm", source="org/b")

    one, other = (
        fold(load(base + entry("v", base="base", adapter=a)).functions)["base"] for a in ("org/a", "org/other")
    )

    assert one.adapters == (Adapter("v", "org/a"),)
    assert revision(one) == revision(other) != revision(load(base).functions["base"])


def test_a_name_of_an_adapter_at_its_instance_follows_from_its_source() -> None:
    one, other = adapter_number("org/a"), adapter_number("org/b")

    assert adapter_name("v", one) == f"v@{one:012x}" != adapter_name("v", other)
    assert 0 <= one < 2**48


def test_requests_of_a_base_with_adapters_are_translated() -> None:
    base = entry("base", engine="llamacpp", source="org/b", native=["messages"])

    alone = fold(load(base + entry("v", variant_of="base")).functions)["base"]
    shared = fold(load(base + entry("v", base="base", adapter="org/a")).functions)["base"]

    assert (alone.native, shared.native) == (("messages",), ())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LLAMA + fake("v", adapter="org/a"), 'adapter needs the function whose instances load it: base = "ID"'),
        (
            BASE + entry("v", base="base", adapter="org/a"),
            "of 'base' cannot have adapters: vllm and llamacpp can",
        ),
        (
            entry("base", engine="command", command=["x", "{port}"]) + entry("v", base="base", adapter="org/a"),
            "adapter: engine \"command\" of 'base' cannot have adapters: vllm and llamacpp can",
        ),
        (
            LLAMA.replace("llamacpp", 'llamacpp"\nserver = "llama_cpp.server')
            + entry("v", base="base", adapter="org/a"),
            "adapter: the server llama_cpp.server of 'base' does not load adapters: use llama-server or xllamacpp",
        ),
        (
            LLAMA + 'args = ["--cache_ram=512"]\n' + entry("v", base="base", adapter="org/a"),
            "answer from the cached prompts of other adapters: leave it out there",
        ),
        (
            LLAMA + 'task = "embed"\n' + entry("v", base="base", adapter="org/a"),
            "adapter: 'base' has task = \"embed\", and adapters are for functions that generate",
        ),
        (
            LLAMA + entry("v", base="base", adapter="/a,b.gguf"),
            "adapter: '/a,b.gguf' has a comma, which engines read as the end of a path: rename it",
        ),
        (
            LLAMA + entry("v", base="base", variant_of="base"),
            "has both base and variant_of, which mean the same: remove one of them",
        ),
        (LLAMA + entry("v", base="bsae", adapter="org/a"), "'bsae' is not in the catalogue; did you mean 'base'?"),
        (LLAMA + entry("v", base=3, adapter="org/a"), "base: Expected `str`, got `int`"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_an_error_with_the_fix(text: str, what: str) -> None:
    reported = problems(text)

    assert len(reported) == 1
    assert reported[0].endswith(what)
    line = int(reported[0].split(":")[1])
    assert text.splitlines()[line - 1].split(" = ")[0] in ("adapter", "base")


def test_arguments_for_adapters_are_cortex_own_where_it_gives_them() -> None:
    base = load(LLAMA + 'args = ["--lora", "/x.gguf"]\n').functions["base"]

    assert list(arguments.duplicates(base)) == []
    assert list(arguments.duplicates(replace(base, adapters=(Adapter("v", "org/a"),)))) == [
        "cortex gives --lora itself, from `adapters`: leave one of the two out"
    ]
