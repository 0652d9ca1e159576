"""A row of any common shape → conversations. The names of its columns say which shape it has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from milora.data.conversation import Conversation, Image, Message, Part, Role, Text
from milora.data.placing import place_pictures, read_image_part
from milora.data.problems import BadRowError, describe

Row = Mapping[str, Any]
ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES: dict[str, Role] = {**ROLES, "human": "user", "gpt": "assistant"}
TREE_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}


NAME_COLUMNS = "name the columns in data.question_column and data.answer_column, or rename them (docs/recipes.md)"


def read_conversations(row: Any, columns: tuple[str, str] | None = None) -> list[Conversation]:
    """Return the conversations of a row: one, or for self-instruct's rows one per instance.

    `columns` are those of the question and the answer, if the recipe names them. Otherwise the first shape in `SHAPES`
    whose columns are all present is the row's.

    Raises:
        BadRowError: the row has no known shape, a cell is not text, or the conversation has no answer at its end.
    """
    if not isinstance(row, Mapping):
        raise BadRowError(f"the row is {describe(row)}, not an object of columns")
    if columns is not None:
        missing = [column for column in columns if column not in row]
        if missing:
            raise BadRowError(f"no column {', '.join(missing)}; there are {_list_columns(row)}", NAME_COLUMNS)
        return [place_pictures(Conversation.of_turn(text_of(row, columns[0]), text_of(row, columns[1])), row)]
    for needed, read in SHAPES:
        if needed <= row.keys():
            return [place_pictures(conversation, row) for conversation in read(row)]
    raise BadRowError(f"the columns are those of no known format: {_list_columns(row)}", NAME_COLUMNS)


def text_of(row: Row, column: str, *, may_be_empty: bool = False) -> str:
    """Return a cell that is text.

    Raises:
        KeyError: the column does not exist.
        BadRowError: the cell is null, a number, nested, or empty.
    """
    return _text(row[column], f"column {column}", may_be_empty=may_be_empty)


def _list_columns(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"


def _text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{where} is {describe(value)}, not text")
    if not value.strip() and not may_be_empty:
        raise BadRowError(f"{where} is {describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone in JSON: half of an emoji
        raise BadRowError(f"{where} contains half of a character ({value[error.start]!r})") from error
    return value


def _optional_text(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else _text(value, f"column {column}", may_be_empty=True)


def _message(role: Role, text: str) -> Message:
    return Message(role, (Text(text),))


def _read_role(value: Any, roles: Mapping[str, Role], where: str) -> Role:
    if not isinstance(value, str) or value not in roles:
        known = ", ".join(roles)
        raise BadRowError(f"{where} is {value!r}, and the roles are {known}")
    return roles[value]


def _read_content(value: Any, where: str) -> tuple[Part, ...]:
    """A string, or a list of parts: texts and pictures."""
    if not isinstance(value, list):
        return (Text(_text(value, where)),)
    parts: list[Part] = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else describe(part)
        if kind == "text":
            parts.append(Text(_text(part.get("text"), f"{where}[{index}].text", may_be_empty=True)))
        elif kind in ("image", "image_url"):
            parts.append(read_image_part(part, f"{where}[{index}]"))
        else:
            raise BadRowError(f"{where}[{index}] is a part of type {kind}, and only text and image parts are read")
    if any(isinstance(part, Image) for part in parts):
        return tuple(parts)
    return (Text(_text("".join(part.text for part in parts if isinstance(part, Text)), where)),)


def _read_message(value: Any, where: str) -> Message:
    """{role, content}, or ShareGPT's {from, value}."""
    if not isinstance(value, Mapping):
        raise BadRowError(f"{where} is {describe(value)}, not a message")
    if "from" in value:
        role = _read_role(value["from"], SHAREGPT_ROLES, f"{where}.from")
        return _message(role, _text(value.get("value"), f"{where}.value"))
    if "role" not in value:
        raise BadRowError(f"{where} has neither role and content nor from and value")
    if value.get("tool_calls"):
        raise BadRowError(f"{where} calls tools, which would not be trained")
    role = _read_role(value["role"], ROLES, f"{where}.role")
    return Message(role, _read_content(value.get("content"), f"{where}.content"))


def _read_messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRowError(f"{where} is {describe(value)}, not a list of messages")
    return [_read_message(entry, f"{where}[{index}]") for index, entry in enumerate(value)]


def _read_side(row: Row, column: str, role: Role) -> list[Message]:
    """A prompt or an answer: text, one message, or a list of messages."""
    value = row[column]
    if isinstance(value, list):
        return _read_messages(value, f"column {column}")
    if isinstance(value, Mapping):
        return [_read_message(value, f"column {column}")]
    return [_message(role, text_of(row, column))]


def read_prompt(row: Row) -> list[Message]:
    """Return the messages of a row that is to be answered: those of `messages`, or the one question of `prompt`.

    Raises:
        BadRowError: a cell is not text, or the conversation does not end on the user.
    """
    if "messages" not in row:
        return [_message("user", text_of(row, "prompt"))]
    messages = _read_messages(row["messages"], "column messages")
    _check_start(messages)
    if messages[-1].role != "user":
        raise BadRowError("the conversation does not end on the user")
    return messages


def _check_start(messages: Sequence[Message]) -> None:
    """Check what holds of every conversation: a system message first if at all, then the user."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise BadRowError("a system message follows other messages")
    if "user" not in roles:
        raise BadRowError("the conversation has no message of the user")
    if roles[roles[0] == "system"] != "user":
        raise BadRowError("the conversation begins with the assistant")


def _finish(messages: Sequence[Message]) -> list[Conversation]:
    """The messages as a conversation, which has the assistant last."""
    _check_start(messages)
    if messages[-1].role != "assistant":
        raise BadRowError("the conversation ends on the user, and no column `chosen` has the answer")
    return [Conversation(tuple(messages))]


def _complete(messages: list[Message], row: Row) -> list[Conversation]:
    """Where the last turn is missing, take it from `chosen`: the turn alone, or the whole conversation again."""
    if messages and messages[-1].role == "user" and row.get("chosen") is not None:
        chosen = _read_side(row, "chosen", "assistant")
        repeated = chosen[: len(messages)] == messages
        messages = chosen if repeated else [*messages, *chosen]
        if not repeated and [message.role for message in chosen] != ["assistant"]:
            raise BadRowError("column chosen neither continues the conversation nor repeats it")
    return _finish(messages)


def _read_chat(row: Row) -> list[Conversation]:
    if row.get("tools"):
        raise BadRowError("the row has tools (column tools), which would not be in the prompt")
    return _complete(_read_messages(row["messages"], "column messages"), row)


def _read_sharegpt(row: Row) -> list[Conversation]:
    messages = _read_messages(row["conversations"], "column conversations")
    system = _optional_text(row, "system")
    if system.strip() and not (messages and messages[0].role == "system"):
        messages.insert(0, _message("system", system))
    return _complete(messages, row)


def _read_completion(row: Row) -> list[Conversation]:
    return _finish([*_read_side(row, "prompt", "user"), *_read_side(row, "completion", "assistant")])


def _read_preference(row: Row) -> list[Conversation]:
    """The prompt and `chosen`, which may be the whole conversation: then the prompt is in it already."""
    chosen = _read_side(row, "chosen", "assistant")
    if "prompt" not in row or any(message.role == "user" for message in chosen):
        return _finish(chosen)
    return _finish([*_read_side(row, "prompt", "user"), *chosen])


def _read_instruction(row: Row) -> list[Conversation]:
    """Alpaca's row; LLaMA-Factory adds `system` and `history`, a list of earlier questions with their answers."""
    messages = []
    if (system := _optional_text(row, "system")).strip():
        messages.append(_message("system", system))
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadRowError("column history is not a list of [question, answer]")
    for index, (question, answer) in enumerate(history):
        messages.append(_message("user", _text(question, f"column history[{index}][0]")))
        messages.append(_message("assistant", _text(answer, f"column history[{index}][1]")))
    question = join_input(text_of(row, "instruction"), _optional_text(row, "input"))
    return _finish([*messages, _message("user", question), _message("assistant", text_of(row, "output"))])


def join_input(instruction: str, given: str) -> str:
    """Return the question that an instruction and its input make."""
    return f"{instruction}\n{given}" if given.strip() else instruction


def _read_instances(row: Row) -> list[Conversation]:
    instruction, instances = text_of(row, "instruction"), row["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRowError(f"column instances is {describe(instances)}, not a list of inputs and outputs")
    found = []
    for index, instance in enumerate(instances):
        where = f"column instances[{index}]"
        if not isinstance(instance, Mapping):
            raise BadRowError(f"{where} is {describe(instance)}, not an object")
        given = "" if instance.get("input") is None else _text(instance["input"], f"{where}.input", may_be_empty=True)
        output = _text(instance.get("output"), f"{where}.output")
        found.append(Conversation.of_turn(join_input(instruction, given), output))
    return found


def _read_plain_text(row: Row) -> list[Conversation]:
    """Trained whole: an answer to nothing."""
    if "role" in row or "parent_id" in row:  # OpenAssistant's other form, one message per row
        raise BadRowError("the row is one message of a conversation, not a text", "use the file of message trees")
    return [Conversation((_message("assistant", text_of(row, "text")),))]


def _read_tree(row: Row) -> list[Conversation]:
    """OpenAssistant's tree: the best-ranked reply at each level, up to the last one of the assistant."""
    message, messages = row["prompt"], []
    where = "column prompt"
    while message is not None:
        if not isinstance(message, Mapping):
            raise BadRowError(f"{where} is {describe(message)}, not a message")
        role = _read_role(message.get("role"), TREE_ROLES, f"{where}.role")
        messages.append(_message(role, _text(message.get("text"), f"{where}.text")))
        message, where = _best_reply(message, where), f"a reply in {where.removeprefix('a reply in ')}"
    while messages and messages[-1].role == "user":
        messages.pop()  # nobody answered it
    if not messages:
        raise BadRowError("no message of the tree is answered")
    return _finish(messages)


def _best_reply(message: Row, where: str) -> Any:
    replies = message.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise BadRowError(f"the replies in {where} are not a list of messages")
    kept = [reply for reply in replies if not reply.get("deleted")]
    return min(kept, key=_rank, default=None)


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) and rank == rank else float("inf")  # NaN is a missing rank too


def _read_prompt(row: Row) -> list[Conversation]:
    if isinstance(row["prompt"], Mapping) and "text" in row["prompt"]:
        return _read_tree(row)
    columns = _list_columns(row)
    raise BadRowError(f"column prompt has no answer beside it, completion or chosen; there are {columns}", NAME_COLUMNS)


def _read_pair(question: str, answer: str) -> Callable[[Row], list[Conversation]]:
    return lambda row: [Conversation.of_turn(text_of(row, question), text_of(row, answer))]


# In order of precedence: UltraFeedback has `messages`, and also `prompt` and `chosen`.
SHAPES: tuple[tuple[set[str], Callable[[Row], list[Conversation]]], ...] = (
    ({"messages"}, _read_chat),
    ({"conversations"}, _read_sharegpt),
    ({"prompt", "completion"}, _read_completion),
    ({"prompt", "chosen"}, _read_preference),
    ({"chosen", "rejected"}, _read_preference),
    ({"instruction", "output"}, _read_instruction),
    ({"instruction", "instances"}, _read_instances),
    ({"question", "answer"}, _read_pair("question", "answer")),
    ({"query", "response"}, _read_pair("query", "response")),
    ({"text"}, _read_plain_text),
    ({"prompt"}, _read_prompt),
)
