"""Check the messages of a chat request, and rewrite those that the chat template does not accept.

`rewrite` returns None when nothing changes, the common case; then the client's bytes are sent.
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
    """A message with the allowed fields only (`MESSAGE_FIELDS`)."""

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
_IMAGES = frozenset({"image_url", "input_image", "video_url"})
_AUDIO = frozenset({"input_audio", "audio_url"})
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def check(messages: list[Message], traits: Traits) -> list[str]:
    """Check the roles and the parts of messages. Return the names of fields to drop.

    Raises BadRequest for a role or type that is not allowed, for media that are not data, and for images and audio that
    the model does not take; the worker validates everything else.
    """
    dropped: set[str] = set()
    for index, message in enumerate(messages):
        if message.role not in _ROLES:
            raise BadRequest(f"expected {', '.join(sorted(_ROLES))}", f"messages[{index}].role")
        if not isinstance(message.content, list):
            continue
        for position, part in enumerate(message.content):
            kind = part.get("type")
            if kind == "text" and len(part) == 2 and "text" in part:
                continue
            _check_part(part, kind, message.role, f"messages[{index}].content[{position}]", traits)
            dropped |= {f"messages.content.{key}" for key in part.keys() - _PART_KEYS.get(str(kind), part.keys())}
    return sorted(dropped) if dropped else []


def _check_part(part: dict[str, Any], kind: Any, role: str, at: str, traits: Traits) -> None:
    if kind is None:
        raise BadRequest("field required", f"{at}.type")
    if not isinstance(kind, str) or kind not in traits.passing.parts:
        raise BadRequest(f"parts of type {str(kind)[:80]!r} are not accepted", f"{at}.type", Kind.UNSUPPORTED)
    if kind in TEXT_PARTS:
        return
    if kind in _IMAGES and not traits.vision:
        if role == "tool" and kind == "image_url":
            return
        raise BadRequest("this model does not accept images", at)
    if kind in _AUDIO and not traits.audio:
        raise BadRequest("this model does not accept audio", at)
    images.check_media(part, kind, at)


_PART_KEYS: dict[str, frozenset[str]] = {
    **dict.fromkeys(TEXT_PARTS, _TEXT_KEYS),
    "image_url": frozenset({"type", "image_url", "detail", "uuid"}),
    "input_image": frozenset({"type", "image_url", "detail"}),
    "input_audio": frozenset({"type", "input_audio"}),
    "audio_url": frozenset({"type", "audio_url"}),
    "video_url": frozenset({"type", "video_url"}),
}


def rewrite(
    messages: list[Message], raw: msgspec.Raw, traits: Traits, *, trim: bool = False
) -> list[dict[str, Any]] | None:
    """Return the messages in the form that the template accepts, or None when they already have it. `trim`: drop fields
    of parts that are not allowed."""
    unchanged = not (trim or _reorder(messages, traits) or wire.contains(raw, prompt_cache.MARK))
    if unchanged and not any([_differs(message, traits) for message in messages]):
        return None
    plain: list[dict[str, Any]] = wire.decode_parts(raw)
    if trim:
        for message in plain:
            if isinstance(message.get("content"), list):
                message["content"] = [_trim(part) for part in message["content"]]
    rewritten = [_message(message, traits) for message in plain]
    return _arrange([message for message in rewritten if message is not None], traits)


def _trim(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part with its allowed fields; a type that an operator added stays whole."""
    keys = _PART_KEYS.get(part["type"], part.keys())
    return {key: value for key, value in part.items() if key in keys}


def _reorder(messages: list[Message], traits: Traits) -> bool:
    """Whether a system message is where the template does not accept one."""
    return not traits.inline_system and any(message.role in _FRONT for message in messages[1:])


def _differs(message: Message, traits: Traits) -> bool:
    if message.role == "developer" and not traits.developer_role:
        return True
    if isinstance(message.content, list) and _flattens(message.role, message.content, traits):
        return True
    if traits.reasoning_field == "reasoning_content" and message.reasoning and not message.reasoning_content:
        return True
    return traits.tool_ids == "alnum9" and (
        bool(message.tool_calls) or message.tool_call_id not in (None, ids.alnum9(message.tool_call_id or ""))
    )


def _flattens(role: str, content: list[dict[str, Any]], traits: Traits) -> bool:
    """Whether to join a list into a string: the template takes no lists, or a tool's list has images without vision."""
    if not traits.content_parts:
        return all(_text(part) is not None for part in content)
    return role == "tool" and not traits.vision and any(part.get("type") == "image_url" for part in content)


def _text(part: dict[str, Any]) -> str | None:
    text = part.get("text") if part.get("type") in ("text", "input_text") else part.get("refusal")
    return text if isinstance(text, str) else None


def _message(message: dict[str, Any], traits: Traits) -> dict[str, Any] | None:
    """Return one message in the template's form; None when it held only a billing header."""
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
        reasoning = message.pop("reasoning")
        message["reasoning_content"] = message.get("reasoning_content") or reasoning
    if traits.tool_ids == "alnum9":
        _renumber(message)
    return message


def _without_billing(content: Content) -> Content:
    if isinstance(content, str):
        return prompt_cache.without_billing(content)
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        text = _text(part)
        clean = text if text is None else prompt_cache.without_billing(text)
        if clean != "" or text == "":
            parts.append(part if clean == text else {**part, "text": clean})
    return parts


def _renumber(message: dict[str, Any]) -> None:
    if isinstance(message.get("tool_call_id"), str):
        message["tool_call_id"] = ids.alnum9(message["tool_call_id"])
    for call in message.get("tool_calls") or ():
        if isinstance(call.get("id"), str):
            call["id"] = ids.alnum9(call["id"])


def _arrange(messages: list[dict[str, Any]], traits: Traits) -> list[dict[str, Any]]:
    """Merge leading system messages into one; turn later ones into user text if the template requires it."""
    if traits.inline_system:
        return messages
    front = 0
    while front < len(messages) and messages[front]["role"] in _FRONT:
        front += 1
    result = messages[:front]
    if front > 1:
        result = [{"role": "system", "content": "\n\n".join(_plain(message) for message in result)}]
    reminders: list[str] = []
    after_reminder = False
    for message in messages[front:]:
        role = message["role"]
        if role in _FRONT:
            reminders.append(prompt_cache.reminder(_plain(message)))
            continue
        if reminders and role != "tool":  # no message between a call and its results
            _append(result, {"role": "user", "content": "\n".join(reminders)}, bool(result))
            reminders, after_reminder = [], True
        _append(result, message, after_reminder)
        after_reminder = False
    if reminders:
        _append(result, {"role": "user", "content": "\n".join(reminders)}, bool(result))
    return result


def _append(result: list[dict[str, Any]], message: dict[str, Any], merge: bool) -> None:
    """Append a message; with `merge`, join adjacent user messages, because templates require alternating roles."""
    last = result[-1] if result else message
    if not merge or last["role"] != "user" or message["role"] != "user":
        result.append(message)
        return
    first, second = last.get("content") or "", message.get("content") or ""
    if isinstance(first, str) and isinstance(second, str):
        result[-1] = {**last, "content": "\n".join(text for text in (first, second) if text)}
    else:
        result[-1] = {**last, "content": [*_as_parts(first), *_as_parts(second)]}


def _as_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _plain(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n\n".join(text for part in content if (text := _text(part)))
