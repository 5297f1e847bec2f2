"""The messages of a chat request: what is refused, and the few things that are changed for the template's sake.

`rewritten` says None when nothing has to change, which is the usual case, and then the client's bytes are sent.
"""

from typing import Any

import msgspec

from cortex.functions.passing import TEXT_PARTS
from cortex.router.dialects.core import ids, images, prompt_cache, wire
from cortex.router.dialects.core.conversation_builder import NO_IMAGES
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.traits import Traits

Content = str | list[dict[str, Any]] | None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message with nothing but the fields that pass (`MESSAGE_FIELDS`)."""

    role: str
    content: Content = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    name: Any = None
    refusal: Any = None
    thinking: Any = None
    function_call: Any = None
    tool_plan: Any = None
    prefix: Any = None
    partial: Any = None


_FRONT = frozenset({"system", "developer"})


_TEXT_KEYS = frozenset({"type", "text", "refusal", "thinking"})
_PICTURES = frozenset({"image_url", "input_image", "video_url"})


def check(messages: list[Message], traits: Traits) -> list[str]:
    """Hold the parts of messages to what passes. Return the names of their fields that do not.

    Raises BadRequest for a part of another kind, for media that are no data, and for images where the model has no
    eyes; everything else is the worker's to judge.
    """
    dropped: set[str] = set()
    for index, message in enumerate(messages):
        if not isinstance(message.content, list):
            continue
        for place, part in enumerate(message.content):
            kind = part.get("type")
            if kind == "text" and len(part) == 2 and "text" in part:
                continue
            _check_part(part, kind, message.role, f"messages[{index}].content[{place}]", traits)
            dropped |= {f"messages.content.{key}" for key in part.keys() - _PART_KEYS.get(str(kind), part.keys())}
    return sorted(dropped)


def _check_part(part: dict[str, Any], kind: Any, role: str, at: str, traits: Traits) -> None:
    if kind is None:
        raise BadRequest("field required", f"{at}.type")
    if not isinstance(kind, str) or kind not in traits.passing.parts:
        raise BadRequest(f"parts of type {str(kind)[:80]!r} are not taken here", f"{at}.type", Kind.UNSUPPORTED)
    if kind in TEXT_PARTS:
        return
    if kind in _PICTURES and not traits.vision:
        if role == "tool" and kind == "image_url":
            return
        raise BadRequest("this model does not take images", at)
    images.check_media(part, kind, at)


_PART_KEYS: dict[str, frozenset[str]] = {
    **dict.fromkeys(TEXT_PARTS, _TEXT_KEYS),
    "image_url": frozenset({"type", "image_url", "detail", "uuid"}),
    "input_image": frozenset({"type", "image_url", "detail"}),
    "input_audio": frozenset({"type", "input_audio"}),
    "audio_url": frozenset({"type", "audio_url"}),
    "video_url": frozenset({"type", "video_url"}),
}


def rewritten(
    messages: list[Message], raw: msgspec.Raw, traits: Traits, *, trim: bool = False
) -> list[dict[str, Any]] | None:
    """The messages as the worker's template takes them, or None when it takes them as they are. `trim`: their parts
    hold fields that do not pass."""
    as_it_is = not (trim or _reorder(messages, traits) or wire.holds(raw, prompt_cache.MARK))
    if as_it_is and not any(_differs(message, traits) for message in messages):
        return None
    plain: list[dict[str, Any]] = wire.decode_parts(raw)
    if trim:
        for message in plain:
            if isinstance(message.get("content"), list):
                message["content"] = [_trim(part) for part in message["content"]]
    changed = [_message(message, traits) for message in plain]
    return _in_place([message for message in changed if message is not None], traits)


def _trim(part: dict[str, Any]) -> dict[str, Any]:
    """A part without the fields that do not pass; a kind that an operator added passes whole."""
    keys = _PART_KEYS.get(part["type"], part.keys())
    return {key: value for key, value in part.items() if key in keys}


def _reorder(messages: list[Message], traits: Traits) -> bool:
    """Whether there is a system message that the template would not take where it is."""
    return not traits.inline_system and any(message.role in _FRONT for message in messages[1:])


def _differs(message: Message, traits: Traits) -> bool:
    if message.role == "developer" and not traits.developer_role:
        return True
    if isinstance(message.content, list) and _flattens(message.role, message.content, traits):
        return True
    if traits.reasoning_field == "reasoning_content" and message.reasoning and not message.reasoning_content:
        return True
    return traits.tool_ids == "alnum9" and (
        bool(message.tool_calls) or message.tool_call_id not in (None, ids.nine(message.tool_call_id or ""))
    )


def _flattens(role: str, content: list[dict[str, Any]], traits: Traits) -> bool:
    """A list becomes a string for templates that know no lists, and where it holds what may not be shown."""
    if not traits.content_parts:
        return all(_text(part) is not None for part in content)
    return role == "tool" and not traits.vision and any(part.get("type") == "image_url" for part in content)


def _text(part: dict[str, Any]) -> str | None:
    text = part.get("text") if part.get("type") in ("text", "input_text") else part.get("refusal")
    return text if isinstance(text, str) else None


def _message(message: dict[str, Any], traits: Traits) -> dict[str, Any] | None:
    """One message as the template takes it; None when there was nothing in it but a billing header."""
    role, content = message["role"], message.get("content")
    if role == "developer" and not traits.developer_role:
        message["role"] = "system"
    if role in _FRONT:
        clean = _without_billing(content)
        if content and not clean:
            return None
        message["content"] = content = clean
    if isinstance(content, list) and _flattens(role, content, traits):
        texts = [_text(part) or (NO_IMAGES if part.get("type") == "image_url" else "") for part in content]
        message["content"] = "\n".join(text for text in texts if text)
    if traits.reasoning_field == "reasoning_content" and message.get("reasoning"):
        message.setdefault("reasoning_content", message.pop("reasoning"))
    if traits.tool_ids == "alnum9":
        _renumber(message)
    return message


def _without_billing(content: Content) -> Content:
    if isinstance(content, str):
        return prompt_cache.without_billing(content)
    if not isinstance(content, list):
        return content
    kept = []
    for part in content:
        text = _text(part)
        clean = text if text is None else prompt_cache.without_billing(text)
        if clean != "" or text == "":
            kept.append(part if clean == text else {**part, "text": clean})
    return kept


def _renumber(message: dict[str, Any]) -> None:
    if isinstance(message.get("tool_call_id"), str):
        message["tool_call_id"] = ids.nine(message["tool_call_id"])
    for call in message.get("tool_calls") or ():
        if isinstance(call.get("id"), str):
            call["id"] = ids.nine(call["id"])


def _in_place(messages: list[dict[str, Any]], traits: Traits) -> list[dict[str, Any]]:
    """System messages at the front become one; later ones, where the template has no room, a user's."""
    if traits.inline_system:
        return messages
    front = 0
    while front < len(messages) and messages[front]["role"] in _FRONT:
        front += 1
    done = messages[:front]
    if front > 1:
        done = [{"role": "system", "content": "\n\n".join(_plain(one) for one in done)}]
    reminders: list[str] = []
    reminded = False
    for message in messages[front:]:
        role = message["role"]
        if role in _FRONT:
            reminders.append(prompt_cache.reminder(_plain(message)))
            continue
        if reminders and role != "tool":  # nothing may come between a call and its results
            _say(done, {"role": "user", "content": "\n".join(reminders)}, bool(done))
            reminders, reminded = [], True
        _say(done, message, reminded)
        reminded = False
    if reminders:
        _say(done, {"role": "user", "content": "\n".join(reminders)}, bool(done))
    return done


def _say(done: list[dict[str, Any]], message: dict[str, Any], merge: bool) -> None:
    """Add a message; a reminder and the user's words beside it are one message, as templates want turns."""
    last = done[-1] if done else message
    if not merge or last["role"] != "user" or message["role"] != "user":
        done.append(message)
        return
    before, after = last.get("content") or "", message.get("content") or ""
    if isinstance(before, str) and isinstance(after, str):
        done[-1] = {**last, "content": "\n".join(text for text in (before, after) if text)}
    else:
        done[-1] = {**last, "content": [*_as_parts(before), *_as_parts(after)]}


def _as_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _plain(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n\n".join(text for part in content if (text := _text(part)))
