"""AlpacaEval's judge: which of two outputs is better, by the published prompts and the published reading of answers.

A preference is 1 for output 1, the reference, and 2 for output 2, the model's; 2.0 gives numbers between them.
"""

import ast
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from milora.data.conversation import Conversation, Message, Text
from milora.data.published import Published, read_text
from milora.evaluation.graders.grade import Grade
from milora.evaluation.judges.alpaca_files import Annotation, write_annotations, write_outputs
from milora.evaluation.judges.fence import NOTICE, delimiters_of, imitates, quote
from milora.evaluation.judges.judge import Answer, Judge, Question
from milora.method.errors import MiloraError
from milora.method.options import JudgeForm

WIN_RATE, FIRST_SHOWN = "win_rate", "first_shown"
DRAW = 1.5
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
PLACES = ("instruction", "output_1", "output_2")
MODELS = ("model_1", "model_2")


@dataclass(frozen=True, slots=True)
class Version:
    """One of AlpacaEval's judges: its prompt, what is asked for, and how the preference is read in an answer.

    `read` raises ValueError, with the reason, if there is none to read.
    """

    annotator: str
    prompt: Published
    verdicts: tuple[str, str]
    max_tokens: int
    temperature: float
    top_logprobs: int | None
    read: Callable[[Answer], float]


@dataclass(frozen=True, slots=True)
class Pair:
    """One instruction with both outputs."""

    instruction: str
    reference: str
    output: str

    @property
    def is_switched(self) -> bool:
        """Whether the model's output is shown first: the official choice, the same in every run."""
        seeded = random.Random(f"is_switched_outputs{self.instruction}0")
        return seeded.choices([False, True])[0]


def judge_pairs(
    version: Version, completions: Sequence[str], rows: Sequence[Conversation], judge: Judge
) -> dict[str, list[Grade]]:
    """Ask which output is better, in the official order or in both, and write AlpacaEval's own files.

    Returns:
        The model's wins, 0 … 1; of both orders also how far the judge preferred what was shown first, which is 0.5 on
        average if its place does not matter.
    """
    template = read_template(version, judge.data_dir)
    pairs = [Pair(row.question, row.answer, completion) for completion, row in zip(completions, rows, strict=True)]
    asked = [
        (index, switched)
        for index, pair in enumerate(pairs)
        if pair.reference != pair.output
        for switched in ([False, True] if judge.section.both_orders else [pair.is_switched])
    ]
    questions = [
        write_question(version, template, pairs[index], switched, judge.section.form) for index, switched in asked
    ]
    answers: dict[int, list[tuple[bool, Answer]]] = {index: [] for index in range(len(pairs))}
    for (index, switched), answer in zip(asked, judge.ask(questions), strict=True):
        answers[index].append((switched, answer))
    delimiters = delimiters_of(template, ['"""'], version.verdicts)
    verdicts = [
        _decide(version, answers[index], flagged=imitates(pair.output, delimiters)) for index, pair in enumerate(pairs)
    ]
    write_outputs(judge.folder, judge.generator, rows, completions)
    write_annotations(
        judge.folder,
        [
            Annotation(row, completion, judge.generator, version.annotator, verdict.preference, verdict.said)
            for row, completion, verdict in zip(rows, completions, verdicts, strict=True)
        ],
    )
    grades = {WIN_RATE: [verdict.win for verdict in verdicts]}
    return grades | ({FIRST_SHOWN: [verdict.first for verdict in verdicts]} if judge.section.both_orders else {})


def read_template(version: Version, data_dir: str | None) -> str:
    """Return the judge's published prompt.

    Raises:
        MiloraError: it is not there, or is not AlpacaEval's: a system and a user turn, with a place for each text.
    """
    template = read_text(version.prompt, data_dir)
    turns = dict(TURN.findall(template))
    if list(turns) != ["system", "user"] or any(turns["user"].count(f"{{{name}}}") != 1 for name in PLACES):
        raise MiloraError(
            f"the prompt of {version.annotator} is not AlpacaEval's: it needs a system and a user turn in <|im_start|>"
            f" … <|im_end|>, and {', '.join(PLACES)} in braces, each once",
            f"get it from {version.prompt.address}",
        )
    return template


def write_question(version: Version, template: str, pair: Pair, switched: bool, form: JudgeForm) -> Question:
    """Return what the judge is asked about a pair.

    Neither form lets a text open a turn of its own: the template is cut into turns first. The corrected form quotes
    both outputs if one of them imitates the prompt, and says so.
    """
    outputs = [pair.output, pair.reference] if switched else [pair.reference, pair.output]
    delimiters = delimiters_of(template, ['"""'], version.verdicts)
    is_fenced = form == "corrected" and any(imitates(output, delimiters) for output in outputs)
    if is_fenced:
        outputs = [quote(output, delimiters) for output in outputs]
    cells = {"instruction": pair.instruction, "output_1": outputs[0], "output_2": outputs[1]}
    messages = []
    for role, text in TURN.findall(template):
        filled = re.sub(rf"\{{({'|'.join(PLACES)})\}}", lambda found: cells[found[1]], text.strip())
        if role == "system":
            messages.append(Message("system", (Text(f"{filled}\n\n{NOTICE}" if is_fenced else filled),)))
        else:
            messages.append(Message("user", (Text(filled),)))
    return Question(tuple(messages), version.max_tokens, version.temperature, version.top_logprobs)


def read_probabilities(answer: Answer) -> float:
    """2 − p(m)/(p(m) + p(M)), from the log-probabilities of the first token: 1 if the judge is sure of output 1.

    Raises:
        ValueError: the answer has none, or neither of the two tokens is among them.
    """
    if not answer.top_logprobs:
        raise ValueError("no log-probabilities")
    found = {token: logprob for token, logprob in answer.top_logprobs if token in ("m", "M")}
    if not found:
        raise ValueError("neither m nor M is among the log-probabilities")
    most = max(found.values())
    chances = {token: math.exp(logprob - most) for token, logprob in found.items()}
    return 2 - chances.get("m", 0.0) / sum(chances.values())


def read_ranking(answer: Answer) -> float:
    """The rank of model_1 in a list of two models, as text: 1 or 2.

    Raises:
        ValueError: the answer is not such a list, or both have the same rank.
    """
    try:
        entries = ast.literal_eval(answer.text.strip()[:1000])
        ranks = {entry["model"]: entry["rank"] for entry in entries}
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError("not a ranking") from error
    if len(entries) != 2 or set(ranks) != set(MODELS) or sorted(map(repr, ranks.values())) != ["1", "2"]:
        raise ValueError("not a ranking of two models")
    return float(ranks["model_1"])


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the answers about one pair come to; `said` is their text."""

    preference: float | None
    said: str | None
    win: Grade
    first: Grade


def _decide(version: Version, answers: Sequence[tuple[bool, Answer]], *, flagged: bool) -> _Verdict:
    """Equal outputs are a draw, and nobody is asked. Of both orders the mean counts, and one without a verdict none."""
    if not answers:
        draw = Grade("equal outputs", 0.5, flagged=flagged)
        return _Verdict(DRAW, None, draw, draw)
    said = " | ".join(answer.text for _, answer in answers)
    try:
        shown = [(switched, _read(version, answer)) for switched, answer in answers]
    except ValueError as error:
        unread = Grade(None, None, str(error), flagged)
        return _Verdict(None, said, unread, unread)
    preference = fmean(3 - value if switched else value for switched, value in shown)
    first = fmean(2 - value for _, value in shown)
    return _Verdict(preference, said, Grade(said, preference - 1, flagged=flagged), Grade(said, first, flagged=flagged))


def _read(version: Version, answer: Answer) -> float:
    if answer.problem:
        raise ValueError(answer.problem)
    return version.read(answer)
