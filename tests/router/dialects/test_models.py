"""The list of models in both shapes, and cut into pages."""

import anthropic
import msgspec
import pytest

from cortex.router.dialects import models
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.models import Card

CARDS = {name: Card(id=name, created=86400) for name in ("a", "org/b", "claude-c", "d")}


def test_case_60_a_model_has_the_anthropic_shape() -> None:
    card = Card(id="org/b", created=86400, max_input_tokens=100, max_output_tokens=10, vision=True, effort=("low",))

    body = msgspec.json.encode(models.anthropic_model(card))

    actual = anthropic.types.ModelInfo.model_validate_json(body)
    assert (actual.id, actual.display_name, actual.lifecycle) == ("org/b", "org/b", "active")
    assert actual.created_at.isoformat() == "1970-01-02T00:00:00+00:00"
    assert (actual.max_input_tokens, actual.max_tokens) == (100, 10)
    assert actual.capabilities is not None
    assert actual.capabilities.image_input.supported
    assert actual.capabilities.effort.low.supported
    assert not actual.capabilities.effort.high.supported


def test_case_60_unknown_fields_are_omitted() -> None:
    described = msgspec.json.decode(msgspec.json.encode(models.anthropic_model(Card(id="a"))))

    assert not {"max_input_tokens", "max_tokens"} & described.keys()
    assert described["lifecycle"] == "active"


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ({}, ["a", "org/b", "claude-c", "d"], False),
        ({"limit": "1000"}, ["a", "org/b", "claude-c", "d"], False),
        ({"limit": "2"}, ["a", "org/b"], True),
        ({"limit": "2", "after_id": "org/b"}, ["claude-c", "d"], False),
        ({"limit": "1", "before_id": "claude-c"}, ["org/b"], True),
        ({"before_id": "a"}, [], False),
        ({"after_id": "gone"}, ["a", "org/b", "claude-c", "d"], False),
    ],
)
def test_case_60_the_list_comes_in_pages(query: dict[str, str], ids: list[str], has_more: bool) -> None:
    page = models.anthropic_page(list(CARDS), **query)

    assert page.ids == ids
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    assert page.others() == {"has_more": has_more, "first_id": first, "last_id": last}


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1001", "", "99999999999", "0000100000", "00001" + "9" * 5000])
def test_case_60_an_invalid_limit_is_refused_by_name(limit: str) -> None:
    with pytest.raises(BadRequest) as caught:
        models.anthropic_page(list(CARDS), limit)

    assert caught.value.fault().param == "limit"
