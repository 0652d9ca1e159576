"""MT-bench's judge: it rates each of two answers from 1 to 10, as FastChat's llm_judge does at 0e6d3e4."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from milora.data.conversation import Conversation
from milora.data.published import Published, read_table
from milora.data.sets import FASTCHAT
from milora.evaluation.graders.grade import Grade
from milora.evaluation.judges.fence import NOTICE, delimiters_of, imitates, quote
from milora.evaluation.judges.judge import Answer, Judge, Question
from milora.method.errors import MiloraError
from milora.method.options import JudgeForm

RATING = "rating"
MAX_TOKENS = 2048
LOWEST, HIGHEST = 1, 10
PROMPTS = Published(("instruction/mt_bench/judge_prompts.jsonl",), f"{FASTCHAT}judge_prompts.jsonl")
REFERENCES = Published(
    ("instruction/mt_bench/reference_answer_gpt-4.jsonl", "reference_answer/gpt-4.jsonl"),
    f"{FASTCHAT}mt_bench/reference_answer/gpt-4.jsonl",
)
WITH_REFERENCE = ("math", "reasoning", "coding")
NAMES = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A published prompt: the system message, and a text with names in braces."""

    system: str
    text: str

    def fill(self, **values: str) -> str:
        """Return the text with the values in it; braces in a value mean nothing."""
        return re.sub(r"\{(\w+)\}", lambda found: values[found.group(1)], self.text)


@dataclass(frozen=True, slots=True)
class Files:
    """What MT-bench has beside its questions: the judge's prompts by name, and references of both turns by question.

    `delimiters` is what imitates the prompts, or a rating.
    """

    prompts: Mapping[str, Prompt]
    references: Mapping[str, Sequence[str]]
    delimiters: re.Pattern[str]


def read_files(data_dir: str | None) -> Files:
    """Return MT-bench's files.

    Raises:
        MiloraError: they are not there, or are not MT-bench's.
    """
    prompts, references = read_table(PROMPTS, data_dir), read_table(REFERENCES, data_dir)
    assert prompts is not None and references is not None  # neither is optional
    named = {row["name"]: Prompt(row["system_prompt"], row["prompt_template"]) for row in prompts}
    missing = [name for name in NAMES if name not in named]
    if missing:
        raise MiloraError(
            f"MT-bench's judge_prompts.jsonl has no {', '.join(missing)}", f"get it from {PROMPTS.address}"
        )
    marks = ("[The Start of", "[The End of", "<|The Start of", "<|The End of", "### User:", "### Assistant A:")
    ratings = [f"[[{rating}]]" for rating in range(LOWEST, HIGHEST + 1)]
    text = "\n".join(named[name].text for name in NAMES)
    answers = {str(row["question_id"]): row["choices"][0]["turns"] for row in references}
    return Files(named, answers, delimiters_of(text, [*marks, *ratings], ratings))


def rate_answers(completions: list[str], rows: list[Conversation], judge: Judge) -> dict[str, list[Grade]]:
    """Rate the answers of both turns: the second one is judged with the first before it."""
    files, form = read_files(judge.data_dir), judge.section.form
    pairs = list(zip(rows, completions, strict=True))
    answers = judge.ask([write_question(row, completion, files, form) for row, completion in pairs])
    return {
        RATING: [
            read_rating(
                answer, form, flagged=any(imitates(text, files.delimiters) for text in list_answers(row, completion))
            )
            for answer, (row, completion) in zip(answers, pairs, strict=True)
        ]
    }


def list_answers(row: Conversation, completion: str) -> list[str]:
    """Return the model's answers up to this one."""
    return [*(message.text for message in row.prompt if message.role == "assistant"), completion.strip()]


def write_question(row: Conversation, completion: str, files: Files, form: JudgeForm) -> Question:
    """Return what the judge is asked about an answer; the corrected form quotes answers that imitate the prompt.

    Raises:
        MiloraError: the files lack the reference answer that the question needs.
    """
    needs_reference, is_second = row.fields["category"] in WITH_REFERENCE, row.fields["turn"] == "2"
    name = f"single{'-math' if needs_reference else ''}-v1{'-multi-turn' if is_second else ''}"
    key = row.fields["key"]
    if needs_reference and key not in files.references:
        raise MiloraError(f"MT-bench's references have none for question {key}", f"get them from {REFERENCES.address}")
    prompt, answers, delimiters = files.prompts[name], list_answers(row, completion), files.delimiters
    system = prompt.system
    if form == "corrected" and any(imitates(text, delimiters) for text in answers):
        answers, system = [quote(text, delimiters) for text in answers], f"{system.strip()}\n\n{NOTICE}"
    asked = [message.text for message in row.prompt if message.role == "user"]
    values = {f"ref_answer_{number}": text for number, text in enumerate(files.references.get(key, ()), 1)}
    values |= {f"question_{number}": text for number, text in enumerate(asked, 1)}
    values |= {f"answer_{number}": text for number, text in enumerate(answers, 1)}
    return Question.of(prompt.fill(question=asked[0], answer=answers[0], **values), MAX_TOKENS, system=system)


def read_rating(answer: Answer, form: JudgeForm, *, flagged: bool) -> Grade:
    """Return the rating that a judge wrote.

    The official form takes the first `[[n]]`, or else the first `[n]`, which may be one that the judge quotes; the
    corrected one takes the last `[[n]]`, which follows the explanation that the prompt asks for.
    """
    if answer.problem:
        return Grade(None, None, answer.problem, flagged)
    number = r"(\d+\.?\d*)"
    found = re.findall(rf"\[\[{number}\]\]", answer.text)
    if form == "official":
        found = found[:1] or re.findall(rf"\[{number}\]", answer.text)[:1]
    if not found:
        return Grade(None, None, "the judge wrote no rating in [[ ]]", flagged)
    rating = float(found[-1])
    if not LOWEST <= rating <= HIGHEST:
        return Grade(found[-1], None, f"a rating of {found[-1]} is not from {LOWEST} to {HIGHEST}", flagged)
    return Grade(found[-1], rating, flagged=flagged)
