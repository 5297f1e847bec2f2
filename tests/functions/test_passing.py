"""The allowlist of fields from clients, and a function's `allow`."""

from typing import get_args

import pytest

from cortex.functions.passing import CHANGES_THE_ANSWER, FIELDS, PARTS, TEMPLATE_NAMES, Entrance, Family, passing
from cortex.functions.servers import SERVERS

DANGEROUS = frozenset(
    {
        "id_slot", "lora", "lora_request", "chat_template", "kv_transfer_params", "mm_processor_kwargs", "priority",
        "prompt_embeds", "image_embeds", "chat_parser", "grammar_triggers", "guided_grammar", "n_predict",
        "n_discard", "n_keep", "cache_salt", "request_id", "max_new_tokens", "n_cmpl", "n_cache_reuse",
        "speculative.n_max", "input_extra", "documents_url", "previous_response_id", "vllm_xargs", "extra_body",
        "media_io_kwargs", "logits_processors", "api_key", "slot_id",
    }
)  # fmt: skip
"""Fields with known vulnerabilities, or for an engine's operator."""
USUAL = ("model", "messages", "temperature", "top_p", "n", "stop", "seed", "tools", "tool_choice", "response_format")


@pytest.mark.parametrize("family", get_args(Family))
def test_no_dangerous_field_passes_to_any_server(family: Family) -> None:
    for fields in FIELDS[family].values():
        assert not fields & DANGEROUS


def test_only_llama_cpp_gets_a_grammar_whose_bounds_are_known() -> None:
    assert {family for family, table in FIELDS.items() if any("grammar" in fields for fields in table.values())} == {
        "llama"
    }


@pytest.mark.parametrize("family", get_args(Family))
def test_every_server_accepts_the_usual_fields_of_openai_clients(family: Family) -> None:
    assert FIELDS[family]["chat"].issuperset(USUAL)
    assert {"text", "image_url"} <= PARTS[family]


def test_every_server_has_a_row_for_every_endpoint() -> None:
    for server in SERVERS.values():
        assert FIELDS[server.family].keys() == set(get_args(Entrance))


def test_allow_adds_fields_names_inside_a_field_and_kinds_of_parts() -> None:
    result = passing("llama", "chat", ("grammar", "chat_template_kwargs.style", "content.image_embeds"))

    assert result.fields == FIELDS["llama"]["chat"] | {"grammar"}
    assert result.template_names == TEMPLATE_NAMES | {"style"}
    assert result.parts == PARTS["llama"] | {"image_embeds"}


def test_arguments_of_the_template_renderer_do_not_pass() -> None:
    assert not TEMPLATE_NAMES & {"chat_template", "tokenize", "tools", "documents", "return_dict", "conversation"}


def test_fields_that_change_the_answer_are_refused() -> None:
    assert {"grammar", "guided_json", "chat_template", "prompt_embeds", "documents"} <= CHANGES_THE_ANSWER
