"""Read the input items of a Responses request into a conversation.

Items are a flat list: messages, reasoning and calls of one assistant turn become one chat message. Item types of
OpenAI's own service are dropped with a note, except references to stored items, which are refused.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import images, wire
from cortex.router.dialects.core.conversation import ImagePart, Part, TextPart
from cortex.router.dialects.core.conversation_builder import NO_IMAGES, ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.responses.tools import Tools

Objects = list[dict[str, Any]]

_TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
_NO_FILES = "[file omitted: only text can be shown to this model]"


class _Message(msgspec.Struct):
    role: str
    content: str | Objects | None = None


class _Text(msgspec.Struct):
    text: str


class _Refusal(msgspec.Struct):
    refusal: str


class _Image(msgspec.Struct):
    image_url: str | dict[str, Any] | None = None
    detail: str | None = None


class _File(msgspec.Struct):
    file_data: str | None = None
    filename: str | None = None


class _Reasoning(msgspec.Struct):
    content: Objects | None = None
    summary: Objects | None = None


class _Call(msgspec.Struct):
    name: str
    call_id: str | None = None
    id: str | None = None
    arguments: str | dict[str, Any] | None = None
    input: str | None = None
    namespace: str | None = None


class _Output(msgspec.Struct):
    call_id: str
    output: str | Objects | None = None


class Reader:
    """Adds items to a builder; collects the paths of dropped ones."""

    def __init__(self, traits: Traits, builder: ConversationBuilder, tools: Tools) -> None:
        self.dropped: list[str] = []
        self._traits = traits
        self._builder = builder
        self._tools = tools

    def item(self, item: dict[str, Any], at: str) -> None:
        default = "message" if "role" in item else ""
        kind = default if item.get("type") is None else wire.kind_of(item, at)
        match kind:
            case "message":
                self._message(wire.convert(item, _Message, at), at)
            case "reasoning":
                self._reasoning(wire.convert(item, _Reasoning, at), at)
            case "function_call":
                call = wire.convert(item, _Call, at)
                value = call.arguments
                self._call(call, value if isinstance(value, str) else wire.text_of(value or {}), at)
            case "custom_tool_call":
                call = wire.convert(item, _Call, at)
                self._call(call, wire.text_of({"input": call.input or ""}), at)
            case "function_call_output" | "custom_tool_call_output":
                self._output(wire.convert(item, _Output, at), at)
            case "item_reference":
                raise BadRequest("items are not stored; send the item itself", at, Kind.UNSUPPORTED)
            case "":
                raise BadRequest("expected an item with a type or a role", at)
            case _:
                self.dropped.append(at)

    def _message(self, message: _Message, at: str) -> None:
        content, here = message.content or "", f"{at}.content"
        match message.role:
            case "user":
                self._builder.user([])
                self._builder.user(self._parts(content, here))
            case "assistant":
                self._builder.assistant("".join(self._texts(content, here)))
            case "system" | "developer":
                for text in self._texts(content, here):
                    self._builder.system(text)
            case _:
                raise BadRequest("expected user, assistant, system or developer", f"{at}.role")

    def _reasoning(self, reasoning: _Reasoning, at: str) -> None:
        """Add reasoning; encrypted reasoning is ignored."""
        texts = self._texts(reasoning.content or [], f"{at}.content")
        texts = texts or self._texts(reasoning.summary or [], f"{at}.summary")
        self._builder.thinking("\n".join(texts))

    def _call(self, call: _Call, arguments: str, at: str) -> None:
        call_id = call.call_id or call.id
        if not call_id:
            raise BadRequest("field required", f"{at}.call_id")
        self._builder.call(call_id, self._tools.flat(call.name, call.namespace), arguments or "{}")

    def _output(self, output: _Output, at: str) -> None:
        content = output.output
        if not isinstance(content, list):
            self._builder.result(output.call_id, content or "", [])
            return
        texts: list[str] = []
        images: list[ImagePart] = []
        for index, item in enumerate(content):
            for part in self._tool_parts(item, f"{at}.output[{index}]"):
                if isinstance(part, TextPart):
                    texts.append(part.text)
                else:
                    images.append(part)
        self._builder.result(output.call_id, "\n".join(texts), images)

    def _tool_parts(self, part: dict[str, Any], at: str) -> list[Part]:
        """Return a tool's part, with a placeholder for content that the model does not accept."""
        kind = wire.kind_of(part, at)
        if kind == "input_image" and not self._traits.vision:
            return [TextPart(NO_IMAGES)]
        try:
            return self._part(part, at)
        except BadRequest as error:
            if kind != "input_file":
                raise
            self.dropped.append(error.param or at)
            return [TextPart(_NO_FILES)]

    def _parts(self, content: str | Objects, at: str) -> list[Part]:
        if isinstance(content, str):
            return [TextPart(content)] if content else []
        parts: list[Part] = []
        for index, part in enumerate(content):
            parts += self._part(part, f"{at}[{index}]")
        return parts

    def _texts(self, content: str | Objects, at: str) -> list[str]:
        parts = self._parts(content, at)
        return [part.text for part in parts if isinstance(part, TextPart)]

    def _part(self, part: dict[str, Any], at: str) -> list[Part]:
        match wire.kind_of(part, at):
            case kind if kind in _TEXTS:
                text = wire.convert(part, _Text, at).text
                return [TextPart(text)] if text else []
            case "refusal":
                return [TextPart(wire.convert(part, _Refusal, at).refusal)]
            case "input_image":
                return [self._image(wire.convert(part, _Image, at), at)]
            case "input_file":
                return self._file(wire.convert(part, _File, at), at)
            case "input_audio":
                raise BadRequest("this model does not accept audio", at)
            case _:
                self.dropped.append(at)
                return []

    def _image(self, image: _Image, at: str) -> ImagePart:
        if not self._traits.vision:
            raise BadRequest("this model does not accept images", at)
        url = image.image_url
        if isinstance(url, dict):
            url = url.get("url")
        if url is None:
            raise BadRequest("field required; stored files are not supported", f"{at}.image_url")
        return images.from_url(url, f"{at}.image_url", image.detail)

    def _file(self, file: _File, at: str) -> list[Part]:
        header, comma, data = (file.file_data or "").partition(",")
        if not comma or not header.lower().startswith("data:text/"):
            raise BadRequest("only files with text in file_data are supported", f"{at}.file_data")
        text = images.as_text(data, f"{at}.file_data")
        return [TextPart(f"{file.filename}\n{text}" if file.filename else text)]
