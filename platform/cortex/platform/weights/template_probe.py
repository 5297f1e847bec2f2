"""Finds out what a chat template supports by rendering it in a sandboxed process.

`python -m cortex.platform.weights.template_probe` reads JSON from stdin, `{"template": …, "bos_token": …,
"eos_token": …}`, and writes a `ModelProfile` to stdout. A template is an untrusted program: it runs under jinja2's
immutable sandbox, in a separate process with little memory and time. Two rules:

- A template that fails on the simplest conversation gives an empty profile.
- A feature is supported when its mark appears in the right place; an error or a lost or moved mark means no.
"""

import json
import os
import re
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from jinja2 import BaseLoader
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cortex.functions.capabilities import LEVELS, ModelProfile, Template

CPU_S, MEMORY_BYTES, LONGEST_TEMPLATE = 5, 1 << 30, 1 << 20

Messages = list[dict[str, Any]]
Render = Callable[..., str | None]

_TOOL = {
    "type": "function",
    "function": {
        "name": "tool_mark",
        "description": "d",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
# Tags for training around the model's turns; they print nothing.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_SWITCHES = ("enable_thinking", "thinking")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_IMAGES = re.compile(r"image_url|image_pad|<image>|['\"]image['\"]")


def probe(source: str, bos: str = "", eos: str = "") -> ModelProfile:
    """Probe a template. Never raises: a broken template gives an empty profile."""
    render = _renderer(source, bos, eos)
    plain = render([_user("u_mark")]) if render else None
    if render is None or plain is None or "u_mark" not in plain:
        return ModelProfile()
    switch = _switch(render)
    reasoning = _replays_reasoning(render)
    return ModelProfile(
        template=Template(
            inline_system=_takes_inline_system(render),
            developer_role="developer" in source and _shows(render, [_message("developer", "d_mark"), _user("u")]),
            content_parts=_takes_parts(render),
            tools=_shows_tools(render),
            reasoning_field="reasoning_content" if reasoning else "none",
            thinking_switch=switch,
            tool_ids="alnum9" if _wants_short_ids(render) else "any",
        ),
        reasoning=bool(switch) or reasoning or "reasoning_effort" in source or "<think>" in source,
        vision=True if _IMAGES.search(source) else None,
        effort=_efforts(render, source),
    )


def _renderer(source: str, bos: str, eos: str) -> Render | None:
    """Compile a template to a function from messages to a prompt, or None where it raises."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], loader=BaseLoader()
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    defaults: dict[str, Any] = {
        "bos_token": bos,
        "eos_token": eos,
        "raise_exception": _raise,
        "strftime_now": lambda _: "2026-01-01",
    }
    try:
        template = environment.from_string(_GENERATION.sub("", source))
    except Exception:  # an untrusted template may raise anything
        return None

    def render(messages: Messages, **more: Any) -> str | None:
        variables = {"messages": messages, "add_generation_prompt": True, "tools": None, **defaults, **more}
        try:
            return template.render(variables)
        except Exception:
            return None

    return render


def _raise(message: str = "") -> None:
    raise ValueError(message)


def _message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _user(content: Any) -> dict[str, Any]:
    return _message("user", content)


def _shows(render: Render, messages: Messages, *marks: str) -> bool:
    """Return whether the prompt has every mark, in this order."""
    prompt = render(messages)
    places = [prompt.find(mark) for mark in marks or ("d_mark",)] if prompt is not None else [-1]
    return min(places) >= 0 and places == sorted(places)


def _takes_inline_system(render: Render) -> bool:
    """Return whether a system message stays in place, in the middle and at the end, rather than hoisted or lost."""
    middle = [_message("system", "s_mark"), _user("u_mark"), _message("assistant", "a_mark"), _user("v_mark")]
    inline = [*middle[:2], _message("system", "i_mark"), *middle[2:]]
    last = [*middle, _message("system", "i_mark")]
    return _shows(render, inline, "s_mark", "u_mark", "i_mark", "a_mark", "v_mark") and _shows(
        render, last, "s_mark", "v_mark", "i_mark"
    )


def _takes_parts(render: Render) -> bool:
    """Return whether lists of parts work; a template without support prints the list's repr."""
    prompt = render([_user([{"type": "text", "text": "p_mark"}])])
    return prompt is not None and "p_mark" in prompt and not re.search(r"['\"]text['\"]\s*:", prompt)


def _shows_tools(render: Render) -> bool:
    prompt = render([_user("u_mark")], tools=[_TOOL])
    return prompt is not None and "tool_mark" in prompt


def _render_tool_call(render: Render, call_id: str = "abcdef123", **more: Any) -> str | None:
    """Render a conversation during a tool call. Some templates require arguments as text, some as an object."""
    for arguments in ({"at": "x"}, '{"at": "x"}'):
        call = {"id": call_id, "type": "function", "function": {"name": "tool_mark", "arguments": arguments}}
        messages = [
            _user("u_mark"),
            _message("assistant", "", tool_calls=[call], **more),
            _message("tool", "r_mark", tool_call_id=call_id, name="tool_mark"),
        ]
        if (prompt := render(messages, tools=[_TOOL])) is not None:
            return prompt
    return None


def _replays_reasoning(render: Render) -> bool:
    """Return whether the prompt repeats earlier reasoning, under any of its field names."""
    for name in _REASONING_FIELDS:
        messages = [_user("u_mark"), _message("assistant", "a_mark", **{name: "t_mark"}), _user("v_mark")]
        if any(
            "t_mark" in (prompt or "") for prompt in (_render_tool_call(render, **{name: "t_mark"}), render(messages))
        ):
            return True
    return False


def _wants_short_ids(render: Render) -> bool:
    return _render_tool_call(render) is not None and _render_tool_call(render, "call_0123456789") is None


def _switch(render: Render) -> str:
    """Return the variable that turns thinking off, that is, changes the prompt."""
    for name in _SWITCHES:
        on, off = (render([_user("u_mark")], **{name: state}) for state in (True, False))
        if on is not None and off is not None and on != off:
            return name
    return ""


def _efforts(render: Render, source: str) -> dict[str, str] | None:
    """Map each level to the nearest accepted one, the lower of two; None if the template does not use levels."""
    if "reasoning_effort" not in source:
        return None
    accepted = [level for level in LEVELS if render([_user("u_mark")], reasoning_effort=level) is not None]
    literal = [level for level in accepted if re.search(rf"['\"]{level}['\"]", source)]
    # A template that prints any value names no levels; models are trained on these three.
    levels = (
        literal if len(literal) > 1 else [level for level in ("low", "medium", "high") if level in accepted]
    ) or accepted
    return {level: _nearest(level, levels) for level in LEVELS} if levels else None


def _nearest(level: str, levels: Sequence[str]) -> str:
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(LEVELS)}
    if level == "none":
        return "none" if "none" in levels else levels[0]
    thinking = [k for k in levels if k != "none"] or levels
    return min(thinking, key=lambda k: (abs(ranks[k] - ranks[level]), ranks[k]))


def main() -> None:
    """Read a template from stdin and write its profile to stdout."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    request = json.loads(sys.stdin.buffer.read(4 * LONGEST_TEMPLATE))
    profile = probe(request["template"], request.get("bos_token", ""), request.get("eos_token", ""))
    sys.stdout.buffer.write(msgspec.json.encode(profile))


if __name__ == "__main__":
    main()
