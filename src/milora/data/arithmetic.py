"""The embedded set: arithmetic word problems of one and two steps, written by a seeded generator.

They are synthetic. They show that a model learns what it is taught, in minutes and offline; they are not evidence about
any benchmark. Train, validation and test share no sentence and no pair of numbers: each split has its own templates,
and a hash of a step's operation and operands says to which split it belongs.
"""

import hashlib
import random
from typing import Literal, get_args

from milora.data.conversation import Conversation
from milora.data.sets import Split
from milora.method.errors import MiloraError

Operation = Literal["+", "-", "*", "/"]
Step = tuple[int, Operation, int, int]  # left, operation, right, result

MOST = 10_000  # each split has over 100 000; far fewer are enough
NAMES = ("Mia", "Omar", "Lena", "Jack", "Nora", "Ravi", "Ella", "Tom", "Ines", "Hugo", "Yuki", "Sam")
ITEMS = ("apples", "marbles", "stickers", "buttons", "coins", "shells", "pencils", "cookies", "cards", "beads")

# {a} and {b} are a step's operands; in a second step the left one is the result of the first, and is not stated.
FIRST: dict[Split, dict[Operation, tuple[str, ...]]] = {
    "train": {
        "+": (
            "{name} has {a} {item} and buys {b} more.",
            "{name} finds {a} {item} on Monday and {b} more on Tuesday.",
            "{name} has {a} {item} and gets {b} more from a friend.",
        ),
        "-": (
            "{name} has {a} {item} and gives away {b} of them.",
            "{name} buys {a} {item} but loses {b} of them.",
            "{name} has {a} {item} and sells {b} of them.",
        ),
        "*": (
            "{name} has {a} boxes with {b} {item} in each box.",
            "{name} buys {a} bags of {b} {item} each.",
            "{name} fills {a} jars with {b} {item} per jar.",
        ),
        "/": (
            "{name} splits {a} {item} into {b} equal piles and keeps only one pile.",
            "{name} packs {a} {item} equally into {b} boxes and keeps only one box.",
        ),
    },
    "validation": {
        "+": (
            "{name} collects {a} {item} and then picks up {b} more.",
            "{name} owns {a} {item} and receives {b} more from a neighbor.",
        ),
        "-": (
            "{name} starts with {a} {item} and trades away {b} of them.",
            "{name} owns {a} {item} but drops {b} of them in the lake.",
        ),
        "*": ("{name} carries {a} baskets of {b} {item} each.", "{name} gets {a} packs that each contain {b} {item}."),
        "/": (
            "{name} divides {a} {item} into {b} equal parts and saves just one part.",
            "{name} sorts {a} {item} evenly into {b} trays and saves just one tray.",
        ),
    },
    "test": {
        "+": (
            "{name} brings {a} {item} to a fair and wins {b} more.",
            "{name} gathers {a} {item} in the morning and {b} more in the afternoon.",
        ),
        "-": (
            "{name} brings {a} {item} to school and hands out {b} of them.",
            "{name} gathers {a} {item} but leaves {b} of them behind.",
        ),
        "*": ("{name} orders {a} cartons of {b} {item}.", "{name} owns {a} tins, each with {b} {item} inside."),
        "/": (
            "{name} arranges {a} {item} in {b} equal rows and takes just one row.",
            "{name} spreads {a} {item} evenly over {b} bowls and takes just one bowl.",
        ),
    },
}
SECOND: dict[Split, dict[Operation, tuple[str, ...]]] = {
    "train": {
        "+": ("Then {name} buys {b} more {item}.", "After that, a friend gives {name} {b} more {item}."),
        "-": ("Then {name} gives away {b} {item}.", "After that, {name} loses {b} {item}."),
        "*": ("A month later, {name} has {b} times as many {item}.",),
        "/": ("Then {name} splits these {item} into {b} equal piles and keeps only one pile.",),
    },
    "validation": {
        "+": ("Later, {name} picks up {b} more {item}.",),
        "-": ("Later, {name} trades away {b} {item}.",),
        "*": ("By the summer, {name} owns {b} times as many {item}.",),
        "/": ("Later, {name} divides these {item} into {b} equal parts and saves just one part.",),
    },
    "test": {
        "+": ("Next, {name} wins {b} more {item}.",),
        "-": ("Next, {name} hands out {b} {item}.",),
        "*": ("Within a year, {name} has {b} times as many {item}.",),
        "/": ("Next, {name} arranges these {item} in {b} equal rows and takes just one row.",),
    },
}
QUESTION: dict[Split, tuple[str, ...]] = {
    "train": ("How many {item} does {name} have now?", "How many {item} does {name} now have?"),
    "validation": ("How many {item} does {name} have after that?",),
    "test": ("How many {item} does {name} end up with?",),
}


def write_problems(split: Split, count: int, *, seed: int = 0, steps: tuple[int, ...] = (1, 2)) -> list[Conversation]:
    """Return `count` different problems; every answer ends "The answer is: n".

    The same arguments give the same rows on every machine. Rows take turns through `steps`, the numbers of steps.

    Raises:
        MiloraError: an unknown split, a number of steps other than 1 or 2, or a count outside 0 … 10000.
    """
    if split not in get_args(Split):
        raise MiloraError(f"split={split!r} is unknown", f"choose one of {', '.join(get_args(Split))}")
    if not steps or not set(steps) <= {1, 2}:
        raise MiloraError(f"steps={steps} must be a choice of 1 and 2", "use (1,), (2,) or (1, 2)")
    if not 0 <= count <= MOST:
        raise MiloraError(f"count={count} is outside 0 … {MOST}", "more would only repeat themselves")
    draw = random.Random(f"{split}-{seed}")
    problems: dict[str, str] = {}
    while len(problems) < count:
        question, answer = _write_problem(split, steps[len(problems) % len(steps)], draw)
        problems[question] = answer
    return [Conversation.of_turn(question, answer) for question, answer in problems.items()]


def _write_problem(split: Split, steps: int, draw: random.Random) -> tuple[str, str]:
    name, item = draw.choice(NAMES), draw.choice(ITEMS)
    taken = [_draw_step(split, draw, None)]
    if steps == 2:
        taken.append(_draw_step(split, draw, taken[0][3]))
    sentences = [
        draw.choice(texts[split][operation]).format(name=name, item=item, a=left, b=right)
        for texts, (left, operation, right, _) in zip((FIRST, SECOND), taken, strict=False)
    ]
    question = " ".join([*sentences, draw.choice(QUESTION[split]).format(name=name, item=item)])
    working = " ".join(f"{left} {operation} {right} = {result}." for left, operation, right, result in taken)
    return question, f"{working} The answer is: {taken[-1][3]}"


def _draw_step(split: Split, draw: random.Random, left: int | None) -> Step:
    """Draw numbers until the step belongs to the split; with `left` given, one that continues from it."""
    operation: Operation = draw.choice(get_args(Operation))
    while True:
        if left is not None:
            operation = draw.choice(get_args(Operation))  # not every operation can continue from every number
        right = draw.randrange(2, 10) if operation in "*/" else draw.randrange(2, 60)
        first = left or {"/": right * draw.randrange(2, 13), "*": draw.randrange(2, 21)}.get(
            operation, draw.randrange(3, 100)
        )
        if operation == "/" and first % right:
            continue
        result = {"+": first + right, "-": first - right, "*": first * right, "/": first // right}[operation]
        if 2 <= result <= 200 and _split_of(first, operation, right) == split:
            return first, operation, right, result


def _split_of(left: int, operation: Operation, right: int) -> Split:
    if operation in "+*":
        left, right = sorted((left, right))  # who has seen 14 + 9 has seen 9 + 14
    share = hashlib.sha256(f"{left}{operation}{right}".encode()).digest()[0]
    return "train" if share < 154 else "validation" if share < 205 else "test"
