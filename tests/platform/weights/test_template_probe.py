"""What is found out about chat templates by trying them; the templates here are small ones of each kind there is."""

import json
import subprocess
import sys

import msgspec
import pytest

from cortex.functions.capabilities import ModelProfile, Template
from cortex.platform.weights.demo_model import CHAT_TEMPLATE
from cortex.platform.weights.template_probe import probe

IN_PLACE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
HOISTS = (
    "{% for m in messages if m.role == 'system' %}[SYS]{{ m.content }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)
ONLY_FIRST = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message must be first.') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)
DROPS = "{% for m in messages if m.role in ('user', 'assistant') %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image_url' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
AGENT = (
    "{%- if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}{% if not enable_thinking | default(true) %}<think></think>{% endif %}"
)
NINE = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}"
    "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)
THREE_EFFORTS = (
    "{% if reasoning_effort is defined and reasoning_effort not in ['low', 'medium', 'high'] %}"
    "{{ raise_exception('no such effort') }}{% endif %}" + IN_PLACE
)
TWO_EFFORTS = THREE_EFFORTS.replace("['low', 'medium', 'high']", "['none', 'high']")
ANY_EFFORT = "Reasoning: {{ reasoning_effort | default('medium') }}" + IN_PLACE


@pytest.mark.parametrize(
    ("template", "taken"),
    [(IN_PLACE, True), (CHAT_TEMPLATE, True), (HOISTS, False), (ONLY_FIRST, False), (DROPS, False)],
    ids=["in place", "the demo's", "hoists", "raises", "drops"],
)
def test_an_inline_system_message_is_taken_only_where_it_comes_out_in_its_place(template: str, taken: bool) -> None:
    assert probe(template).template.inline_system is taken


def test_a_developer_is_known_only_to_templates_that_name_it() -> None:
    named = IN_PLACE.replace("{{ m.role }}", "{{ 'system' if m.role == 'developer' else m.role }}")

    assert probe(IN_PLACE).template.developer_role is False
    assert probe(named).template.developer_role is True


def test_a_list_of_parts_is_taken_where_it_is_not_printed_as_one() -> None:
    assert probe(IN_PLACE).template.content_parts is False
    assert probe(PARTS).template.content_parts is True


def test_images_are_seen_by_their_marks() -> None:
    assert probe(PARTS).vision is True
    assert probe(IN_PLACE).vision is None


def test_an_agents_template_shows_tools_and_thoughts_and_has_a_switch() -> None:
    known = probe(AGENT)

    assert known.reasoning
    assert known.template == Template(
        inline_system=True,
        developer_role=False,
        content_parts=False,
        tools=True,
        reasoning_field="reasoning_content",
        thinking_switch="enable_thinking",
        tool_ids="any",
    )


def test_a_plain_template_has_none_of_that() -> None:
    known = probe(CHAT_TEMPLATE)

    assert not known.reasoning
    assert known.template.tools is False
    assert known.template.reasoning_field == "none"
    assert known.template.thinking_switch == ""


def test_a_template_may_want_short_ids() -> None:
    assert probe(NINE).template.tool_ids == "alnum9"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (THREE_EFFORTS, {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "max": "high"}),
        (TWO_EFFORTS, {"none": "none", "minimal": "high", "low": "high", "xhigh": "high"}),
        (ANY_EFFORT, {"none": "low", "minimal": "low", "low": "low", "xhigh": "high", "max": "high"}),
    ],
    ids=["three", "two", "any"],
)
def test_efforts_fold_to_the_nearest_that_the_template_takes(template: str, told: dict[str, str]) -> None:
    found = probe(template).effort

    assert found is not None
    assert {level: found[level] for level in told} == told


def test_a_template_without_an_effort_has_no_map() -> None:
    assert probe(IN_PLACE).effort is None


@pytest.mark.parametrize(
    "broken",
    ["{% for", "{{ nothing.at.all }}", "{{ raise_exception('no') }}", "", "{{ ''.__class__.__mro__ }}"],
    ids=["syntax", "undefined", "raises", "empty", "reaches out of the sandbox"],
)
def test_of_a_broken_template_nothing_is_known(broken: str) -> None:
    assert probe(broken) == ModelProfile()


def test_a_template_cannot_change_what_it_is_given() -> None:
    assert probe("{{ messages.append(1) }}" + IN_PLACE) == ModelProfile()


def run(template: str) -> "subprocess.CompletedProcess[bytes]":
    asked = json.dumps({"template": template}).encode()
    argv = [sys.executable, "-m", "cortex.platform.weights.template_probe"]
    return subprocess.run(argv, input=asked, capture_output=True, timeout=60, check=False)


def test_the_process_says_what_it_found() -> None:
    assert msgspec.json.decode(run(AGENT).stdout, type=ModelProfile) == probe(AGENT)


def test_a_template_that_eats_memory_ends_only_its_own_process() -> None:
    hungry = "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"

    done = run(hungry + IN_PLACE)

    assert done.returncode != 0 or msgspec.json.decode(done.stdout, type=ModelProfile) == ModelProfile()
