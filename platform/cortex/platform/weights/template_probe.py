"""What a chat template takes, found by trying: a small process that renders it in a sandbox and says what it saw.

`python -m cortex.platform.weights.template_probe` reads JSON from stdin, `{"template": …, "bos_token": …,
"eos_token": …}`, and writes a `Known` to stdout. A template is a program that came with somebody's weights: it runs
under jinja2's immutable sandbox, in a process of its own with little memory, little time, and nothing else to do. Its
two rules:

- What cannot be tried is not known. A template that fails on the plainest conversation says nothing at all.
- A mark that comes out where it should is a yes; an error, or a mark that is lost or moved, is a no.
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
# Tags that trainers put around what the model says; they print nothing.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_SWITCHES = ("enable_thinking", "thinking")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_IMAGES = re.compile(r"image_url|image_pad|<image>|['\"]image['\"]")


def probe(source: str, bos: str = "", eos: str = "") -> ModelProfile:
    """Try a template. Raises nothing: a broken one is one of which nothing is known."""
    render = _renderer(source, bos, eos)
    plain = render([_user("u_mark")]) if render else None
    if render is None or plain is None or "u_mark" not in plain:
        return ModelProfile()
    switch = _switch(render)
    thoughts = _wants_thoughts(render)
    return ModelProfile(
        template=Template(
            inline_system=_takes_inline_system(render),
            developer_role="developer" in source and _shows(render, [_says("developer", "d_mark"), _user("u")]),
            content_parts=_takes_parts(render),
            tools=_shows_tools(render),
            reasoning_field="reasoning_content" if thoughts else "none",
            thinking_switch=switch,
            tool_ids="alnum9" if _wants_short_ids(render) else "any",
        ),
        reasoning=bool(switch) or thoughts or "reasoning_effort" in source or "<think>" in source,
        vision=True if _IMAGES.search(source) else None,
        effort=_efforts(render, source),
    )


def _renderer(source: str, bos: str, eos: str) -> Render | None:
    """Make a template into a function from a conversation to a prompt, which is None where it raises."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], loader=BaseLoader()
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    given: dict[str, Any] = {
        "bos_token": bos,
        "eos_token": eos,
        "raise_exception": _refused,
        "strftime_now": lambda _: "2026-01-01",
    }
    try:
        template = environment.from_string(_GENERATION.sub("", source))
    except Exception:  # whatever a stranger's template does wrong, nothing is known of it
        return None

    def render(messages: Messages, **more: Any) -> str | None:
        variables = {"messages": messages, "add_generation_prompt": True, "tools": None, **given, **more}
        try:
            return template.render(variables)
        except Exception:
            return None

    return render


def _refused(message: str = "") -> None:
    raise ValueError(message)


def _says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _user(content: Any) -> dict[str, Any]:
    return _says("user", content)


def _shows(render: Render, messages: Messages, *marks: str) -> bool:
    """Whether every mark is in the prompt, in this order."""
    prompt = render(messages)
    places = [prompt.find(mark) for mark in marks or ("d_mark",)] if prompt is not None else [-1]
    return min(places) >= 0 and places == sorted(places)


def _takes_inline_system(render: Render) -> bool:
    """In the middle and at the end: a template that hoists it, or loses it, does not take it."""
    middle = [_says("system", "s_mark"), _user("u_mark"), _says("assistant", "a_mark"), _user("v_mark")]
    inline = [*middle[:2], _says("system", "i_mark"), *middle[2:]]
    last = [*middle, _says("system", "i_mark")]
    return _shows(render, inline, "s_mark", "u_mark", "i_mark", "a_mark", "v_mark") and _shows(
        render, last, "s_mark", "v_mark", "i_mark"
    )


def _takes_parts(render: Render) -> bool:
    """A template that knows no lists prints one as Python would."""
    prompt = render([_user([{"type": "text", "text": "p_mark"}])])
    return prompt is not None and "p_mark" in prompt and not re.search(r"['\"]text['\"]\s*:", prompt)


def _shows_tools(render: Render) -> bool:
    prompt = render([_user("u_mark")], tools=[_TOOL])
    return prompt is not None and "tool_mark" in prompt


def _called(render: Render, call_id: str = "abcdef123", **more: Any) -> str | None:
    """Render a conversation in the middle of a tool call. Some templates want arguments as text, some an object."""
    for arguments in ({"at": "x"}, '{"at": "x"}'):
        call = {"id": call_id, "type": "function", "function": {"name": "tool_mark", "arguments": arguments}}
        said = [
            _user("u_mark"),
            _says("assistant", "", tool_calls=[call], **more),
            _says("tool", "r_mark", tool_call_id=call_id, name="tool_mark"),
        ]
        if (prompt := render(said, tools=[_TOOL])) is not None:
            return prompt
    return None


def _wants_thoughts(render: Render) -> bool:
    """Whether what the model thought before a call is shown to it again, under any of its names."""
    for name in _THOUGHTS:
        said = [_user("u_mark"), _says("assistant", "a_mark", **{name: "t_mark"}), _user("v_mark")]
        if any("t_mark" in (prompt or "") for prompt in (_called(render, **{name: "t_mark"}), render(said))):
            return True
    return False


def _wants_short_ids(render: Render) -> bool:
    return _called(render) is not None and _called(render, "call_0123456789") is None


def _switch(render: Render) -> str:
    """The variable that turns thinking off: the one that changes the prompt."""
    for name in _SWITCHES:
        on, off = (render([_user("u_mark")], **{name: state}) for state in (True, False))
        if on is not None and off is not None and on != off:
            return name
    return ""


def _efforts(render: Render, source: str) -> dict[str, str] | None:
    """For each level the nearest that the template takes, the lower of two; None if it does not ask for one."""
    if "reasoning_effort" not in source:
        return None
    taken = [level for level in LEVELS if render([_user("u_mark")], reasoning_effort=level) is not None]
    named = [level for level in taken if re.search(rf"['\"]{level}['\"]", source)]
    # A template that prints any word it is given names none: these three are what models are trained on.
    known = (named if len(named) > 1 else [level for level in ("low", "medium", "high") if level in taken]) or taken
    return {level: _nearest(level, known) for level in LEVELS} if known else None


def _nearest(level: str, known: Sequence[str]) -> str:
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(LEVELS)}
    if level == "none":
        return "none" if "none" in known else known[0]
    thinking = [k for k in known if k != "none"] or known
    return min(thinking, key=lambda k: (abs(ranks[k] - ranks[level]), ranks[k]))


def main() -> None:
    """Read a template, say what it takes."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    asked = json.loads(sys.stdin.buffer.read(4 * LONGEST_TEMPLATE))
    known = probe(asked["template"], asked.get("bos_token", ""), asked.get("eos_token", ""))
    sys.stdout.buffer.write(msgspec.json.encode(known))


if __name__ == "__main__":
    main()
