"""The adapter in a request to shared instances: its number or its name, and an error of its function alone."""

import json

import pytest
from msgspec.structs import replace

from cortex.functions.spec import Engine, Function
from cortex.router.errors import AdapterFailed
from cortex.router.live_catalogue import Target
from cortex.router.request.adapters import able, check_adapter, with_adapter
from tests.support.factories import an_instance

BASE = Function(id="base", engine=Engine.LLAMACPP)
CALM = Function(id="calm", engine=Engine.LLAMACPP, variant_of="base")
LEGAL = Function(id="legal", engine=Engine.LLAMACPP, variant_of="base", adapter="org/a")
AT = an_instance("i", function="base", server="xllamacpp", adapters={"other": 0, "legal": 1})


def to(function: Function, base: Function = BASE) -> Target:
    return Target(function, "r", None if function.id == base.id else base, True)


@pytest.mark.parametrize(
    ("function", "lora"),
    [(BASE, [{"id": 0, "scale": 0.0}]), (CALM, [{"id": 0, "scale": 0.0}]), (LEGAL, [{"id": 1, "scale": 1.0}])],
)
def test_every_request_to_llama_cpp_names_its_adapter(function: Function, lora: list[object]) -> None:
    body = with_adapter(b'{"model":"base","lora":[{"id":0,"scale":9}]}', to(function), AT)

    assert json.loads(body)["lora"] == lora  # the last of duplicates counts, as in llama.cpp


def test_an_instance_without_adapters_gets_the_body_unchanged() -> None:
    assert with_adapter(b"{}", to(BASE), replace(AT, adapters={})) == b"{}"


def test_vllm_knows_an_adapter_by_the_name_of_its_function() -> None:
    base, legal = (replace(f, engine=Engine.VLLM) for f in (BASE, LEGAL))

    assert (to(legal, base).worker_model, to(base, base).worker_model) == ("legal", "base")
    assert to(LEGAL).worker_model == "base"
    assert with_adapter(b"{}", to(legal, base), replace(AT, server="vllm")) == b"{}"


def test_an_adapter_that_is_not_loaded_is_an_error_with_the_reason_for_operators() -> None:
    instance = replace(AT, adapters={"other": 0}, adapter_problems={"legal": "it is for another base"})

    check_adapter(to(BASE), instance)
    check_adapter(to(CALM), instance)
    with pytest.raises(AdapterFailed) as error:
        check_adapter(to(LEGAL), instance)
    assert "'legal' cannot be served: it is for another base" in error.value.fault(operator=True).message
    assert "another base" not in error.value.fault().message
    with pytest.raises(AdapterFailed, match="was started without it"):
        check_adapter(to(LEGAL), replace(AT, adapters={}))


def test_an_instance_with_the_adapter_is_preferred_to_one_without() -> None:
    without = replace(AT, id="j", adapters={"other": 0})

    assert able(to(LEGAL), (without, AT)) == (AT,)
    assert able(to(LEGAL), (without,)) == (without,)
    assert able(to(BASE), (without, AT)) == (without, AT)
    assert able(to(CALM), (without, AT)) == (without, AT)
