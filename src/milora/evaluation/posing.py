"""A benchmark's rows → what is asked of a model: the prompts of its first turn, and of a turn that follows."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Conversation, Image, Message
from milora.data.kept_pictures import keep_blank
from milora.data.picture_sets import check_usable
from milora.data.pictures import measure_picture
from milora.data.processor import Pictures
from milora.data.templates import CHAT, ChatTemplate, Template, TextTemplate, resolve_template
from milora.evaluation.benchmarks import Benchmark
from milora.evaluation.conditions import served_by, template_of
from milora.evaluation.generation.completions import Completed, complete_all
from milora.evaluation.generation.context import Fitted, fit
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.generation.request import Backend, Decoding, Request
from milora.evaluation.target import Target
from milora.method.errors import MiloraError
from milora.method.options import TemplateName
from milora.models.base import context_length
from milora.models.vision import load_processor, takes_pictures
from milora.run.directory import ScoreFolder
from milora.run.launch import is_main_process
from milora.run.sections import EvaluationSection, ModelSection

BARE = TextTemplate("{question}")


@dataclass(frozen=True, slots=True)
class Posed:
    """A benchmark's rows, and what is asked of a model about them."""

    benchmark: Benchmark
    rows: list[Conversation]
    template: Template
    fitted: Fitted


@dataclass(frozen=True, slots=True)
class Answered:
    """The rows of all turns, their completions, and how many of their prompts did not fit."""

    rows: list[Conversation]
    completed: Completed
    unfit: int


def pictures_of(model: ModelSection) -> Pictures | None:
    """Return what a model's processor makes of pictures, None if it takes text only."""
    return Pictures(partial(load_processor, model)) if takes_pictures(model) else None


def choose_prompt(
    benchmark: Benchmark, name: TemplateName | None, tokenizer: PreTrainedTokenizerBase, pictures: Pictures | None
) -> Template:
    """Return the template of this name; without one, the benchmark's official prompt.

    A benchmark of conversations has none: its prompt is the model's own chat template, if it has one. Otherwise it is
    the question alone, and around a picture what LLaVA-1.5 is asked with.
    """
    if name is not None:
        return resolve_template(name, lambda: tokenizer, pictures)
    if benchmark.prompt is not None:
        return benchmark.prompt
    if tokenizer.chat_template:
        return resolve_template(CHAT, lambda: tokenizer, pictures)
    return resolve_template("vicuna", lambda: tokenizer, pictures) if benchmark.has_pictures else BARE


def check_turns(benchmark: Benchmark, template: Template, row: Conversation) -> None:
    """Raise unless the template can express the prompts of all turns."""
    if benchmark.follow_up is not None:
        template.render(benchmark.follow_up(row, "An answer.").prompt)


def load_posable(
    benchmark: Benchmark, model: ModelSection, section: EvaluationSection, data_dir: str | None
) -> list[Conversation]:
    """Return the rows that are asked, with usable pictures that the model takes; a blind benchmark with gray ones.

    Raises:
        MiloraError: the rows or their pictures are not there, or the model takes text only.
    """
    rows = benchmark.load(section.data_dir or data_dir, section.limit)
    images = list(dict.fromkeys(path for row in rows for path in row.images))
    if not images:
        return rows
    if not takes_pictures(model):
        raise MiloraError(
            f"{benchmark.name} shows pictures, and {model.name} takes text only",
            "leave the task out, or use a model such as llava-hf/llava-1.5-7b-hf",
        )
    check_usable(benchmark.set_name, images)
    return [_blank(row) for row in rows] if benchmark.blind else rows


def _blank(row: Conversation) -> Conversation:
    """The row with a gray picture of the same size in the place of each."""

    def change(message: Message) -> Message:
        parts = [
            Image(str(keep_blank(measure_picture(part.path)))) if isinstance(part, Image) else part
            for part in message.parts
        ]
        return Message(message.role, tuple(parts))

    return replace(row, messages=tuple(map(change, row.messages)))


def pose(
    benchmark: Benchmark,
    target: Target,
    section: EvaluationSection,
    tokenizer: PreTrainedTokenizerBase,
    pictures: Pictures | None,
) -> Posed:
    """Return the prompts of the first turn.

    Raises:
        MiloraError: the rows are not there, a template cannot express them, or no prompt fits.
    """
    rows = load_posable(benchmark, target.model, section, target.data_dir)
    template = choose_prompt(benchmark, template_of(target.template, section), tokenizer, pictures)
    check_turns(benchmark, template, rows[0])
    fitted = _fit(benchmark, rows, template, target, section, tokenizer)
    return Posed(benchmark, rows, template, fitted)


def answer(
    posed: Posed,
    target: Target,
    section: EvaluationSection,
    tokenizer: PreTrainedTokenizerBase,
    backend: Backend,
    folder: ScoreFolder,
) -> Answered:
    """Complete the prompts, and then those that follow the model's own answers."""
    if isinstance(backend, LocalBackend):
        backend.end_turns_of(posed.template if isinstance(posed.template, ChatTemplate) else None)
    first = complete_all(backend, posed.fitted.requests, folder)
    follow_up = posed.benchmark.follow_up
    if follow_up is None:
        return Answered(posed.rows, first, posed.fitted.unfit)
    rows = [follow_up(row, one.text) for row, one in zip(posed.rows, first.completions, strict=True)]
    fitted = _fit(posed.benchmark, rows, posed.template, target, section, tokenizer, follows=True)
    second = complete_all(backend, fitted.requests, folder)
    completed = Completed(
        [*first.completions, *second.completions], first.made + second.made, first.seconds + second.seconds
    )
    return Answered([*posed.rows, *rows], completed, posed.fitted.unfit + fitted.unfit)


def make_requests(
    rows: Sequence[Conversation], template: Template, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> list[Request]:
    """Return what is asked of a model about each row."""
    known: dict[int, int] = {}  # one object for each token: a picture may be a thousand, of a hundred thousand rows

    def encode(row: Conversation) -> tuple[int, ...]:
        return tuple(known.setdefault(token, token) for token in template.encode_prompt(tokenizer, row.prompt))

    return [Request(template.render(row.prompt), encode(row), decoding, row.images) for row in rows]


def _fit(
    benchmark: Benchmark,
    rows: Sequence[Conversation],
    template: Template,
    target: Target,
    section: EvaluationSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    follows: bool = False,
) -> Fitted:
    decoding = benchmark.decoding(section.max_new_tokens)
    decoding = replace(decoding, stops=(*decoding.stops, *template.stops))
    requests = make_requests(rows, template, tokenizer, decoding)
    served = served_by(target, benchmark.name, section)
    context = served.context if served else context_length(target.model, tokenizer)
    fitted = fit(requests, context, follows=follows)
    if (fitted.capped or fitted.unfit) and is_main_process():
        print(
            f"{benchmark.name} of {target.who}: the model's context of {context} tokens leaves {fitted.capped} of "
            f"{len(rows)} prompts fewer than {decoding.max_new_tokens} new tokens; {fitted.unfit} do not fit, and "
            "count as wrong",
            file=sys.stderr,
        )
    return fitted
