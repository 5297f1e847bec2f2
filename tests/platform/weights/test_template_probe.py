"""Features that probing finds in chat templates; the templates here are small samples of each kind."""

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
    ("template", "usage"),
    [(IN_PLACE, True), (CHAT_TEMPLATE, True), (HOISTS, False), (ONLY_FIRST, False), (DROPS, False)],
    ids=["in place", "the demo's", "hoists", "raises", "drops"],
)
def test_inline_system_is_supported_only_when_rendered_in_place(template: str, usage: bool) -> None:
    assert probe(template).template.inline_system is usage


def test_the_developer_role_needs_a_template_that_names_it() -> None:
    named = IN_PLACE.replace("{{ m.role }}", "{{ 'system' if m.role == 'developer' else m.role }}")

    assert probe(IN_PLACE).template.developer_role is False
    assert probe(named).template.developer_role is True


def test_content_parts_are_supported_unless_printed_as_a_list() -> None:
    assert probe(IN_PLACE).template.content_parts is False
    assert probe(PARTS).template.content_parts is True


def test_image_marks_in_a_template_mean_vision() -> None:
    assert probe(PARTS).vision is True
    assert probe(IN_PLACE).vision is None


def test_an_agent_template_has_tools_reasoning_and_a_thinking_switch() -> None:
    profile = probe(AGENT)

    assert profile.reasoning
    assert profile.template == Template(
        inline_system=True,
        developer_role=False,
        content_parts=False,
        tools=True,
        reasoning_field="reasoning_content",
        thinking_switch="enable_thinking",
        tool_ids="any",
    )


def test_a_plain_template_has_no_agent_features() -> None:
    profile = probe(CHAT_TEMPLATE)

    assert not profile.reasoning
    assert profile.template.tools is False
    assert profile.template.reasoning_field == "none"
    assert profile.template.thinking_switch == ""


def test_a_template_that_rejects_long_ids_requires_short_ones() -> None:
    assert probe(NINE).template.tool_ids == "alnum9"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (THREE_EFFORTS, {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "max": "high"}),
        (TWO_EFFORTS, {"none": "none", "minimal": "high", "low": "high", "xhigh": "high"}),
        (ANY_EFFORT, {"none": "low", "minimal": "low", "low": "low", "xhigh": "high", "max": "high"}),
    ],
    ids=["three", "two", "any"],
)
def test_effort_levels_map_to_the_nearest_accepted_one(template: str, expected: dict[str, str]) -> None:
    levels = probe(template).effort

    assert levels is not None
    assert {level: levels[level] for level in expected} == expected


def test_a_template_without_effort_levels_has_no_map() -> None:
    assert probe(IN_PLACE).effort is None


@pytest.mark.parametrize(
    "broken",
    ["{% for", "{{ nothing.at.all }}", "{{ raise_exception('no') }}", "", "{{ ''.__class__.__mro__ }}"],
    ids=["syntax", "undefined", "raises", "empty", "reaches out of the sandbox"],
)
def test_a_broken_template_gives_an_empty_profile(broken: str) -> None:
    assert probe(broken) == ModelProfile()


def test_a_template_cannot_change_its_input() -> None:
    assert probe("{{ messages.append(1) }}" + IN_PLACE) == ModelProfile()


def run(template: str) -> "subprocess.CompletedProcess[bytes]":
    request = json.dumps({"template": template}).encode()
    argv = [sys.executable, "-m", "cortex.platform.weights.template_probe"]
    return subprocess.run(argv, input=request, capture_output=True, timeout=60, check=False)


def test_the_process_prints_the_profile() -> None:
    assert msgspec.json.decode(run(AGENT).stdout, type=ModelProfile) == probe(AGENT)


def test_a_memory_hungry_template_ends_only_its_own_process() -> None:
    hungry = "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"

    completed = run(hungry + IN_PLACE)

    assert completed.returncode != 0 or msgspec.json.decode(completed.stdout, type=ModelProfile) == ModelProfile()
