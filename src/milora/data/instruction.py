"""Rows of the benchmarks of instruction following → conversations with the fields that their graders read."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from milora.data.conversation import Conversation
from milora.data.formats import text_of
from milora.data.problems import BadRowError, describe
from milora.method.errors import MiloraError

Row = Mapping[str, Any]


def read_ifeval(row: Row) -> Conversation:
    """A prompt and its verifiable instructions; the hub's copy lists every argument, null where it is not set."""
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments):
        raise BadRowError("instruction_id_list and kwargs are not two lists of the same length")
    instructions = [
        {"id": name, "arguments": {key: value for key, value in (given or {}).items() if value is not None}}
        for name, given in zip(names, arguments, strict=True)
    ]
    return Conversation.of_turn(
        text_of(row, "prompt"), "", key=str(row["key"]), instructions=json.dumps(instructions, ensure_ascii=False)
    )


def read_follow_bench(category: str) -> Callable[[Row], Conversation]:
    """Return the reader of one of FollowBench's files, whose constraints are of this category."""

    def read(row: Row) -> Conversation:
        for column in ("level", "example_id"):
            if not isinstance(row[column], int):
                raise BadRowError(f"column {column} is {describe(row[column])}, not a whole number")
        return Conversation.of_turn(
            text_of(row, "instruction", may_be_empty=row["level"] == 0),
            text_of(row, "target", may_be_empty=True),
            category=category,
            source=text_of(row, "source"),
            example=str(row["example_id"]),
            level=str(row["level"]),
        )

    return read


def join_levels(rows: Iterable[Conversation]) -> Iterator[Conversation]:
    """Give each of FollowBench's prompts the earlier ones of its group, which a judge sees, and leave level 0 out.

    Raises:
        MiloraError: the levels of a group are not in order.
    """
    earlier: list[str] = []
    last = ("", -1)
    for row in rows:
        example, level = row.fields["example"], int(row.fields["level"])
        if level <= 1 and (example, level - 1) != last:
            earlier = []  # a group begins at level 0, and in the category `example` at level 1
        elif (example, level - 1) != last:
            raise MiloraError(
                f"FollowBench's example {example} has level {level} after level {last[1]} of example {last[0]}",
                "use the published file: the levels of an example follow each other",
            )
        last = (example, level)
        if level:
            yield replace(row, fields=row.fields | {"earlier": json.dumps(earlier, ensure_ascii=False)})
        earlier.append(row.question)


def read_mt_bench(row: Row) -> Conversation:
    """The first question; the second, which follows the model's own answer, is a field."""
    turns = row["turns"]
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise BadRowError("column turns is not a list of two questions")
    return Conversation.of_turn(
        turns[0], "", key=str(row["question_id"]), category=text_of(row, "category"), turn="1", second=turns[1]
    )
