"""The messages of a chat request: what is refused, and the few things that are changed for the template's sake.

`rewritten` says None when nothing has to change, which is the usual case, and then the client's bytes are sent.
"""

from typing import Any

import msgspec

from cortex.router.dialects import hygiene, ids, images
from cortex.router.dialects.errors import BadRequest
from cortex.router.dialects.thread import NO_IMAGES
from cortex.router.dialects.traits import Traits

Content = str | list[dict[str, Any]] | None


class Message(msgspec.Struct):
    role: str
    content: Content = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


_FRONT = frozenset({"system", "developer"})


def check(messages: list[Message], traits: Traits) -> None:
    """Images that this function may not be shown; everything else is the worker's to judge."""
    for index, message in enumerate(messages):
        if not isinstance(message.content, list):
            continue
        for place, part in enumerate(message.content):
            if part.get("type") != "image_url":
                continue
            at = f"messages[{index}].content[{place}]"
            if traits.vision:
                given = part.get("image_url")
                url = given.get("url") if isinstance(given, dict) else given
                images.from_url(url, traits, f"{at}.image_url")
            elif message.role != "tool":
                raise BadRequest("this model does not take images", at)


def rewritten(messages: list[Message], raw: msgspec.Raw, traits: Traits) -> list[dict[str, Any]] | None:
    """The messages as the worker's template takes them, or None when it takes them as they are."""
    as_it_is = not (_reorder(messages, traits) or hygiene.MARK in bytes(raw))
    if as_it_is and not any(_differs(message, traits) for message in messages):
        return None
    plain: list[dict[str, Any]] = msgspec.json.decode(raw)
    changed = [_message(message, traits) for message in plain]
    return _in_place([message for message in changed if message is not None], traits)


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
        return hygiene.without_billing(content)
    if not isinstance(content, list):
        return content
    kept = []
    for part in content:
        text = _text(part)
        clean = text if text is None else hygiene.without_billing(text)
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
            reminders.append(hygiene.reminder(_plain(message)))
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
