"""Media on their way to a worker: always as data, never as an address for a worker to fetch.

A worker that is handed an address fetches it from inside the network. Where a function says `remote_images`, the
router has fetched the images before a request comes here. What cannot be an image is refused here, with the field's
name, rather than in the worker's words.
"""

import base64
import binascii
from typing import Any

from cortex.router.dialects.core.conversation import ImagePart, ImageUrl
from cortex.router.dialects.core.errors import BadRequest


def from_base64(media_type: object, data: object, at: str) -> ImagePart:
    """An image given as its type and its bytes in base64."""
    if not isinstance(media_type, str) or not media_type.lower().startswith("image/"):
        raise BadRequest("expected the type of an image, such as image/png", f"{at}.media_type")
    return ImagePart(ImageUrl(f"data:{media_type};base64,{checked(data, f'{at}.data')}"))


def from_url(url: object, at: str, detail: object = None) -> ImagePart:
    """An image given as a data URL."""
    if not isinstance(url, str):
        raise BadRequest("expected a string", at)
    if url[:5].lower() == "data:":
        header, comma, data = url[5:].partition(",")
        media_type, *options = header.split(";")
        if not comma or "base64" not in options:
            raise BadRequest("expected data:image/...;base64,...", at)
        if not media_type.lower().startswith("image/"):
            raise BadRequest(f"{media_type!r} is not the type of an image", at)
        url = f"data:{header},{checked(data, at)}"
    else:
        raise BadRequest("images are not fetched from addresses here; send the image as base64 data", at)
    return ImagePart(ImageUrl(url, detail if isinstance(detail, str) else None))


def checked(data: object, at: str) -> str:
    """Base64 that a worker will be able to decode; line breaks are forgiven."""
    if not isinstance(data, str):
        raise BadRequest("expected a string", at)
    if _is_base64(data):
        return data
    joined = "".join(data.split())
    if _is_base64(joined):
        return joined
    raise BadRequest("not valid base64", at)


_PIECE = 1024 * 1024
"""Characters of base64 that are looked at in one call: a multiple of four."""


def _is_base64(text: str) -> bool:
    for at in range(0, len(text), _PIECE):
        piece = text[at : at + _PIECE]
        try:
            if not base64.b64decode(piece, validate=True):
                return False
        except (binascii.Error, ValueError):
            return False
        if "=" in piece and at + _PIECE < len(text):
            return False
    return bool(text)


def as_text(data: object, at: str) -> str:
    """The text of a base64 document whose type says that it is text."""
    return base64.b64decode(checked(data, at)).decode("utf-8", "replace")


def check_media(part: dict[str, Any], kind: str, at: str) -> None:
    """Look at what a part of a chat message shows or plays. Raises BadRequest for anything but data."""
    given = part.get(kind)
    match kind:
        case "image_url" | "input_image":
            given = part.get("image_url")
            from_url(given.get("url") if isinstance(given, dict) else given, f"{at}.image_url")
        case "input_audio":
            checked(given.get("data") if isinstance(given, dict) else given, f"{at}.input_audio.data")
        case "video_url" | "audio_url":
            url = given.get("url") if isinstance(given, dict) else given
            header, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
            if header[:5].lower() != "data:" or not comma or not header.lower().endswith(";base64"):
                raise BadRequest("expected data:...;base64,...", f"{at}.{kind}")
            checked(data, f"{at}.{kind}")
        case _:
            refuse_addresses(part, at)


_ADDRESSED = frozenset({"url", "uri", "image", "video", "audio", "file", "path", "file_url", "file_id"})


_NOT_SHOWN = frozenset({"input", "arguments", "annotations", "citations", "action"})
"""Inside these are the arguments of calls, and sources that a text names."""


def refuse_addresses(value: Any, at: str) -> None:
    """Look through what an operator lets pass, or an engine reads itself: media in it are data. Raises BadRequest."""
    stack = [(value, at, False)]
    while stack:
        node, here, shown = stack.pop()
        if isinstance(node, str):
            if shown and node[:5].lower() != "data:":
                raise BadRequest("addresses are not fetched here; send the data itself", here)
        elif isinstance(node, list):
            stack += [(one, f"{here}[{index}]", shown) for index, one in enumerate(node)]
        elif isinstance(node, dict):
            stack += [(one, f"{here}.{key}", _shows(key)) for key, one in node.items() if key not in _NOT_SHOWN]


def _shows(key: str) -> bool:
    name = key.lower()
    return name in _ADDRESSED or name.endswith(("_url", "_uri", "_path"))
