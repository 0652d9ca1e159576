"""The embedded set: arithmetic word problems of one and two steps, written by a seeded generator.

They are synthetic. They show that a model learns what it is taught, in minutes and offline; they are no evidence about
any benchmark. Train, validation and test share no sentence and no pair of numbers: each split has its own templates,
and a hash of a step's operation and operands says to which split it belongs.
"""

import hashlib
import random
from typing import Literal, get_args

from milora.method.errors import MiloraError

Split = Literal["train", "validation", "test"]
Operation = Literal["+", "-", "*", "/"]
Step = tuple[int, Operation, int, int]  # left, operation, right, result

NAMES = ("Mia", "Omar", "Lena", "Jack", "Nora", "Ravi", "Ella", "Tom", "Ines", "Hugo", "Yuki", "Sam")
ITEMS = ("apples", "marbles", "stickers", "books", "coins", "shells", "pencils", "cookies", "cards", "beads")

# {a} and {b} are a step's operands; in a second step {a} is the result of the first and stays unspoken.
FIRST: dict[Split, dict[Operation, tuple[str, ...]]] = {
    "train": {
        "+": ("{name} has {a} {item} and buys {b} more.", "{name} finds {a} {item} on Monday and {b} on Tuesday."),
        "-": ("{name} has {a} {item} and gives away {b}.", "{name} had {a} {item} but lost {b} of them."),
        "*": ("{name} has {a} boxes with {b} {item} in each.", "{name} fills {a} bags with {b} {item} each."),
        "/": (
            "{name} shares {a} {item} equally among {b} friends and takes one friend's share.",
            "{name} splits {a} {item} into {b} equal piles and keeps one pile.",
        ),
    },
    "validation": {
        "+": ("{name} collects {a} {item} and then gets {b} more from a neighbour.",),
        "-": ("{name} starts with {a} {item} and sells {b} of them.",),
        "*": ("{name} packs {a} baskets, and every basket holds {b} {item}.",),
        "/": ("{name} divides {a} {item} evenly over {b} shelves and looks at one shelf.",),
    },
    "test": {
        "+": ("{name} owns {a} {item} and receives another {b} as a gift.",),
        "-": ("{name} carries {a} {item} home and drops {b} on the way.",),
        "*": ("{name} orders {a} packs that contain {b} {item} apiece.",),
        "/": ("{name} puts {a} {item} into {b} jars of the same size and opens a single jar.",),
    },
}
SECOND: dict[Split, dict[Operation, tuple[str, ...]]] = {
    "train": {
        "+": ("Then {name} gets {b} more.", "A friend adds {b} more."),
        "-": ("Then {name} gives {b} to a friend.", "After that {b} are used up."),
        "*": ("A week later there are {b} times as many.", "Then the number grows to {b} times as many."),
        "/": ("Then they are shared equally by {b} people, and {name} is one of them.",),
    },
    "validation": {
        "+": ("Later {b} extra ones arrive.",),
        "-": ("Later {b} of these go missing.",),
        "*": ("In the end there are {b} times that number.",),
        "/": ("Later {name} keeps only one of {b} equal parts.",),
    },
    "test": {
        "+": ("The next day {name} picks up {b} more of the same kind.",),
        "-": ("The next day {name} hands {b} over to a cousin.",),
        "*": ("By spring the amount is {b} times as large.",),
        "/": ("The next day {name} holds on to just one of {b} equal shares.",),
    },
}
QUESTION: dict[Split, str] = {
    "train": "How many {item} does {name} have now?",
    "validation": "What is the number of {item} that {name} has in the end?",
    "test": "How many {item} are with {name} at last?",
}


def write_problems(split: Split, count: int, *, seed: int = 0, steps: tuple[int, ...] = (1, 2)) -> list[dict[str, str]]:
    """Return `count` different problems, `{"question", "answer"}`; every answer ends "The answer is: n".

    The same arguments give the same rows on every machine. Rows take turns through `steps`, the numbers of steps.

    Raises:
        MiloraError: an unknown split, a number of steps other than 1 or 2, or more problems than the split has.
    """
    if split not in get_args(Split):
        raise MiloraError(f"split={split!r} is unknown", f"choose one of {', '.join(get_args(Split))}")
    if not steps or not set(steps) <= {1, 2}:
        raise MiloraError(f"steps={steps} must be a choice of 1 and 2", "use (1,), (2,) or (1, 2)")
    if count < 0:
        raise MiloraError(f"count={count} is negative", "ask for 0 or more problems")
    draw = random.Random(f"{split}-{seed}")
    problems: dict[str, str] = {}
    misses = 0
    while len(problems) < count:
        question, answer = _write_problem(split, steps[len(problems) % len(steps)], draw)
        misses = misses + 1 if question in problems else 0
        if misses > 1000:
            raise MiloraError(
                f"count={count}: the {split} split has only about {len(problems)} problems", "ask for fewer"
            )
        problems[question] = answer
    return [{"question": question, "answer": answer} for question, answer in problems.items()]


def _write_problem(split: Split, steps: int, draw: random.Random) -> tuple[str, str]:
    name, item = draw.choice(NAMES), draw.choice(ITEMS)
    taken = [_draw_step(split, draw, None)]
    if steps == 2:
        taken.append(_draw_step(split, draw, taken[0][3]))
    sentences = [
        draw.choice(texts[split][operation]).format(name=name, item=item, a=left, b=right)
        for texts, (left, operation, right, _) in zip((FIRST, SECOND), taken, strict=False)
    ]
    question = " ".join([*sentences, QUESTION[split].format(name=name, item=item)])
    working = " ".join(f"{left} {operation} {right} = {result}." for left, operation, right, result in taken)
    return question, f"{working} The answer is: {taken[-1][3]}"


def _draw_step(split: Split, draw: random.Random, left: int | None) -> Step:
    """Draw numbers until the step belongs to the split; with `left` given, one that continues from it."""
    operation: Operation = draw.choice(get_args(Operation))
    while True:
        if left is not None:
            operation = draw.choice(get_args(Operation))  # not every operation can continue from every number
        right = draw.randrange(2, 10) if operation in "*/" else draw.randrange(2, 60)
        first = left or {"/": right * draw.randrange(2, 13), "*": draw.randrange(2, 13)}.get(
            operation, draw.randrange(3, 100)
        )
        if operation == "/" and first % right:
            continue
        result = {"+": first + right, "-": first - right, "*": first * right, "/": first // right}[operation]
        if 2 <= result <= 200 and _split_of(first, operation, right) == split:
            return first, operation, right, result


def _split_of(left: int, operation: Operation, right: int) -> Split:
    share = hashlib.sha256(f"{left}{operation}{right}".encode()).digest()[0]
    return "train" if share < 154 else "validation" if share < 205 else "test"
