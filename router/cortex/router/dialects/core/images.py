"""Media in requests: workers get data, never an address to fetch.

A worker would fetch an address from inside the network. For functions with `remote_images`, the router fetches images
before translation. Invalid images are refused here, with the field's name.
"""

import base64
import string
from typing import Any

from cortex.router.dialects.core.conversation import ImagePart, ImageUrl
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.long_strings import Beginning, whole


def from_base64(media_type: object, data: object, at: str) -> ImagePart:
    """Return an image part for a media type and base64 data. Raises BadRequest."""
    if not isinstance(media_type, str) or not media_type.lower().startswith("image/"):
        raise BadRequest("expected an image type, such as image/png", f"{at}.media_type")
    return ImagePart(ImageUrl(f"data:{media_type};base64,{check_base64(data, f'{at}.data')}"))


def from_url(url: object, at: str, detail: object = None) -> ImagePart:
    """Return an image part for a data URL. Raises BadRequest."""
    if not isinstance(url, str):
        raise BadRequest("expected a string", at)
    if url[:5].lower() == "data:":
        comma = url.find(",")
        media_type, *options = url[5 : max(0, comma)].split(";")
        if "base64" not in options:
            raise BadRequest("expected data:image/...;base64,...", at)
        if not media_type.lower().startswith("image/"):
            raise BadRequest(f"{media_type!r} is not an image type", at)
        url = _data_url(url, comma, at)
    else:
        raise BadRequest("image addresses are not fetched; send the image as base64 data", at)
    return ImagePart(ImageUrl(url, detail if isinstance(detail, str) else None))


def check_base64(data: object, at: str) -> str:
    """Return valid base64, without whitespace. Raises BadRequest."""
    if not isinstance(data, str):
        raise BadRequest("expected a string", at)
    if _is_base64(data):
        return data
    data = whole(data)
    joined = "".join(data.split())
    if _is_base64(joined):
        return joined
    raise BadRequest("not valid base64", at)


def _data_url(url: str, comma: int, at: str) -> str:
    """Return a data URL whose data, after the comma, is valid base64 without whitespace. Raises BadRequest."""
    if url.startswith("data:") and _is_base64(url, comma + 1):
        return url  # no copy
    url = whole(url)
    return f"data:{url[5:comma]},{check_base64(url[comma + 1 :], at)}"


_PIECE = 128 * 1024
"""Characters of base64 to check in one call; other threads run in between."""
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
_MOST_PADS = 2


def _is_base64(text: str, start: int = 0) -> bool:
    """Whether a text is base64 of at least one byte, from an index on."""
    data: str | memoryview = text.data if isinstance(text, Beginning) else text
    end = size = len(data)
    while end > start and size - end < _MOST_PADS and data[end - 1] in ("=", ord("=")):
        end -= 1
    rest, pads = (end - start) % 4, size - end
    if end == start or rest == 1 or (rest and pads < 4 - rest):
        return False
    try:
        pieces = (data[at : min(at + _PIECE, end)] for at in range(start, end, _PIECE))
        return not any(_bytes(piece).translate(None, _ALPHABET) for piece in pieces)
    except UnicodeEncodeError:
        return False


def _bytes(ascii: str | memoryview) -> bytes:
    """Raises UnicodeEncodeError."""
    return ascii.encode("ascii") if isinstance(ascii, str) else bytes(ascii)


def as_text(data: object, at: str) -> str:
    """Decode a base64 text document. Raises BadRequest."""
    return base64.b64decode(check_base64(data, at)).decode("utf-8", "replace")


def check_media(part: dict[str, Any], kind: str, at: str) -> None:
    """Check the media of one part of a chat message. Raises BadRequest for anything but data."""
    media = part.get(kind)
    match kind:
        case "image_url" | "input_image":
            media = part.get("image_url")
            from_url(media.get("url") if isinstance(media, dict) else media, f"{at}.image_url")
        case "input_audio":
            check_base64(media.get("data") if isinstance(media, dict) else media, f"{at}.input_audio.data")
        case "video_url" | "audio_url":
            url = media.get("url") if isinstance(media, dict) else media
            _check_data(url if isinstance(url, str) else "", f"{at}.{kind}")
        case _:
            refuse_addresses(part, at)


def _check_data(url: str, at: str) -> None:
    """Raise BadRequest for anything but a data URL in base64."""
    comma = url.find(",")
    header = url[: max(0, comma)].lower()
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise BadRequest("expected data:...;base64,...", at)
    _data_url(url, comma, at)


_ADDRESSED = frozenset({"url", "uri", "image", "video", "audio", "file", "path", "file_url", "file_id"})


_TEXT_FIELDS = frozenset({"input", "arguments", "annotations", "citations", "action"})
"""Fields with call arguments or cited sources; their addresses are text."""


def refuse_addresses(value: Any, at: str) -> None:
    """Raise BadRequest for an address of media in a value that is forwarded unparsed."""
    stack = [(value, at, False)]
    while stack:
        node, here, is_address = stack.pop()
        if isinstance(node, str):
            if is_address and node[:5].lower() != "data:":
                raise BadRequest("addresses are not fetched; send the data itself", here)
        elif isinstance(node, list):
            stack += [(element, f"{here}[{index}]", is_address) for index, element in enumerate(node)]
        elif isinstance(node, dict):
            stack += [
                (item, f"{here}.{key}", _is_address(key)) for key, item in node.items() if key not in _TEXT_FIELDS
            ]


def _is_address(key: str) -> bool:
    name = key.lower()
    return name in _ADDRESSED or name.endswith(("_url", "_uri", "_path"))


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"BM": "bmp",
    b"II*\0": "tiff", b"MM\0*": "tiff",
}  # fmt: skip
"""First bytes of image formats. WebP has its name at the eighth byte."""


def recognize(data: str, at: str) -> ImagePart:
    """Return an image part for base64 data without a media type, which its first bytes tell. Raises BadRequest."""
    if data[:5].lower() == "data:":
        return from_url(data, at)
    checked = check_base64(data, at)
    head = base64.b64decode(checked[:16])
    kind = next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), None)
    if kind is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "webp"
    if kind is None:
        raise BadRequest("expected an image in base64: PNG, JPEG, WebP, GIF, BMP or TIFF", at)
    return ImagePart(ImageUrl(f"data:image/{kind};base64,{checked}"))
