"""A function's variables of the chat template: sent where a client sets none, in every dialect."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.passing import passing
from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request

BODIES: dict[Dialect, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hello!"}]},
    "messages": {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello!"}]},
    "responses": {"input": "Hello!"},
}
EFFORTLESS: dict[Dialect, dict[str, Any]] = {
    "chat": {"chat_template_kwargs": {"enable_thinking": False}},
    "messages": {"thinking": {"type": "disabled"}},
    "responses": {"reasoning": {"effort": "none"}},
}
VARIABLES = st.dictionaries(st.sampled_from(["enable_thinking", "style", "budget"]), st.booleans() | st.integers(0, 9))


def sent(dialect: Dialect, traits: Traits, **more: Any) -> dict[str, Any]:
    body = msgspec.json.encode({"model": "m", **BODIES[dialect], **more})
    return dict(msgspec.json.decode(bytes(read_request(dialect, body, traits).body("m"))))


@pytest.mark.parametrize("dialect", BODIES)
def test_the_functions_variables_are_sent_where_a_client_says_nothing(dialect: Dialect) -> None:
    traits = Traits(template_kwargs={"enable_thinking": True, "style": "brief"})

    assert sent(dialect, traits)["chat_template_kwargs"] == {"enable_thinking": True, "style": "brief"}
    assert "chat_template_kwargs" not in sent(dialect, Traits())


@pytest.mark.parametrize("dialect", BODIES)
def test_what_a_client_sets_takes_precedence(dialect: Dialect) -> None:
    traits = Traits(template_kwargs={"enable_thinking": True, "style": "brief"})

    variables = sent(dialect, traits, **EFFORTLESS[dialect])["chat_template_kwargs"]

    assert variables == {"enable_thinking": False, "style": "brief"}


@pytest.mark.parametrize("dialect", BODIES)
@given(variables=VARIABLES)
def test_nothing_else_of_a_request_changes(dialect: Dialect, variables: dict[str, Any]) -> None:
    with_variables, without = sent(dialect, Traits(template_kwargs=variables)), sent(dialect, Traits())

    assert with_variables.pop("chat_template_kwargs", {}) == variables
    assert with_variables == without


def test_variables_that_are_no_object_are_refused_where_a_function_allows_any() -> None:
    traits = Traits(template_kwargs={"style": "brief"}, passing=passing("vllm", "chat", ("chat_template_kwargs",)))

    with pytest.raises(BadRequest, match="chat_template_kwargs: expected an object"):
        sent("chat", traits, chat_template_kwargs=[1])
