"""Which pictures a row has, and where they are in its messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milora.data.conversation import Conversation, Image, Message, Part, Text
from milora.data.problems import BadRowError, describe

MARK = "<image>"  # LLaVA's, in the text
ADDRESSES = ("http:", "https:", "data:", "ftp:", "s3:", "file:")
KEYS = ("image", "path", "url", "image_url")
NOT_PLACED = Image("")  # a part that says that a picture is there, and not which


def read_image_part(part: Mapping[str, Any], where: str) -> Image:
    """Return the picture of a part of type image or image_url; without a path it is the next one of the row's column.

    Raises:
        BadRowError: it does not name a local file.
    """
    value = next((part[key] for key in KEYS if part.get(key) is not None), None)
    if isinstance(value, Mapping) and "url" in value:  # OpenAI's form
        value = value["url"]
    return NOT_PLACED if value is None else Image(_path(value, where))


def place_pictures(conversation: Conversation, row: Mapping[str, Any]) -> Conversation:
    """Return the conversation with the pictures of the row's columns `image` and `images` where they belong.

    A turn with `<image>` in its text has its pictures in front of that, wherever the mark is: LLaVA's training moves it
    there. So has the only question of a row without marks.

    Raises:
        BadRowError: the columns name more or fewer pictures than the messages have places, or one is not the user's.
    """
    paths, messages = _list(row), conversation.messages
    if not paths and not conversation.images:
        return conversation
    if not conversation.images:
        users = [message for message in messages if message.role == "user"]
        is_marked = any(MARK in message.words for message in messages)
        messages = tuple(
            _take_marks(message) if is_marked else _put_first(message, len(paths)) if users == [message] else message
            for message in messages
        )
    places = sum(part is NOT_PLACED for message in messages for part in message.parts)
    if places != len(paths):
        raise BadRowError(f"the row names {len(paths)} pictures, and its messages have places for {places}")
    if any(message.images and message.role != "user" for message in messages):
        raise BadRowError("a picture is in a message that is not the user's")
    if not places:
        return conversation
    remaining = iter(paths)
    placed = (
        Message(message.role, tuple(Image(next(remaining)) if part is NOT_PLACED else part for part in message.parts))
        for message in messages
    )
    return Conversation(tuple(placed), conversation.fields)


def locate_pictures(conversation: Conversation, folder: Path) -> Conversation:
    """Return the conversation with the paths of its pictures, which are relative to `folder` if they are relative."""
    if not conversation.images:
        return conversation
    messages = tuple(
        Message(message.role, tuple(_locate(part, folder) for part in message.parts))
        for message in conversation.messages
    )
    return Conversation(messages, conversation.fields)


def _locate(part: Part, folder: Path) -> Part:
    return Image(str(folder / part.path)) if isinstance(part, Image) else part


def _list(row: Mapping[str, Any]) -> list[str]:
    found = []
    for column in ("image", "images"):
        value = row.get(column)
        values = value if isinstance(value, list) else [] if value in (None, "") else [value]
        found += [_path(one, f"column {column}") for one in values]
    return found


def _path(value: Any, where: str) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and not value.get("bytes"):
        value = value["path"]
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"{where} is {describe(value)}, not the path of a picture")
    if value.lower().startswith(ADDRESSES):
        raise BadRowError(f"{where} is an address ({value[:40]}), and pictures are read from files")
    return value


def _take_marks(message: Message) -> Message:
    text = message.words
    count = text.count(MARK)
    if not count:
        return message
    rest = text.replace(MARK, "").strip()
    return Message(message.role, (*[NOT_PLACED] * count, *([Text(rest)] if rest else [])))


def _put_first(message: Message, count: int) -> Message:
    return Message(message.role, (*[NOT_PLACED] * count, *message.parts))
