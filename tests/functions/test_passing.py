"""What clients may send, as a table: what no family takes unasked, and what an operator adds."""

from typing import get_args

import pytest

from cortex.functions.passing import CHANGES_THE_ANSWER, FIELDS, PARTS, TEMPLATE_NAMES, Entrance, Family, passing
from cortex.functions.servers import SERVERS

DANGEROUS = frozenset(
    {
        "id_slot", "lora", "lora_request", "chat_template", "kv_transfer_params", "mm_processor_kwargs", "priority",
        "prompt_embeds", "image_embeds", "chat_parser", "grammar", "grammar_triggers", "guided_grammar", "n_predict",
        "n_discard", "n_keep", "cache_salt", "request_id", "max_new_tokens", "n_cmpl", "n_cache_reuse",
        "speculative.n_max", "input_extra", "documents_url", "previous_response_id", "vllm_xargs", "extra_body",
        "media_io_kwargs", "logits_processors", "api_key", "slot_id",
    }
)  # fmt: skip
"""Fields that were a hole in an engine, or are for its operator."""
USUAL = ("model", "messages", "temperature", "top_p", "n", "stop", "seed", "tools", "tool_choice", "response_format")


@pytest.mark.parametrize("family", get_args(Family))
def test_no_dangerous_field_passes_to_any_server(family: Family) -> None:
    for fields in FIELDS[family].values():
        assert not fields & DANGEROUS


@pytest.mark.parametrize("family", get_args(Family))
def test_every_server_takes_what_openais_clients_usually_send(family: Family) -> None:
    assert FIELDS[family]["chat"].issuperset(USUAL)
    assert {"text", "image_url"} <= PARTS[family]


def test_every_server_has_a_row_for_every_entrance() -> None:
    for server in SERVERS.values():
        assert FIELDS[server.family].keys() == set(get_args(Entrance))


def test_an_operator_adds_fields_names_inside_one_and_kinds_of_parts() -> None:
    found = passing("llama", "chat", ("grammar", "chat_template_kwargs.style", "content.image_embeds"))

    assert found.fields == FIELDS["llama"]["chat"] | {"grammar"}
    assert found.template_names == TEMPLATE_NAMES | {"style"}
    assert found.parts == PARTS["llama"] | {"image_embeds"}


def test_arguments_of_the_program_that_renders_a_template_do_not_pass() -> None:
    assert not TEMPLATE_NAMES & {"chat_template", "tokenize", "tools", "documents", "return_dict", "conversation"}


def test_fields_without_which_the_answer_is_another_are_refused() -> None:
    assert {"grammar", "guided_json", "chat_template", "prompt_embeds", "documents"} <= CHANGES_THE_ANSWER
