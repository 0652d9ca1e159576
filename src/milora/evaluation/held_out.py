"""The base's and the trained model's answers to held-out rows: what a run on one's own rows has to read."""

import hashlib
from functools import partial

from milora.data.conversation import Conversation
from milora.data.templates import ChatTemplate, Template, resolve_template
from milora.data.tokens import count_tokens
from milora.data.training_rows import load_training_rows
from milora.evaluation.generation.completions import complete_all
from milora.evaluation.generation.context import fit
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.generation.request import Decoding, Request
from milora.evaluation.generation.wide import widen
from milora.evaluation.posing import make_requests, pictures_of
from milora.evaluation.scores import Sample, write_samples
from milora.evaluation.target import Target, target_of_run
from milora.models.base import context_length
from milora.run.directory import RunDirectory, ScoreFolder, locate_scores
from milora.run.launch import is_main_process

HELD_OUT = "held-out"
ROWS = 16
NEW_TOKENS = 256


def answer_held_out(run: RunDirectory) -> None:
    """Let the base and the trained model answer the first held-out rows, greedily, in the template of the training.

    The answers have no grades. Those that exist are kept; every process of a launch must call this.
    """
    trained = target_of_run(run)
    waiting = [target for target in (trained.base, trained) if not locate_answers(target).samples.is_file()]
    if not waiting or not run.recipe.data.validation_rows:
        return
    tokenizer, pictures = trained.load_tokenizer(), pictures_of(run.recipe.model)
    template = resolve_template(trained.template or "auto", lambda: tokenizer, pictures)
    measure = partial(count_tokens, template=template, tokenizer=tokenizer)
    held_out = load_training_rows(run.recipe.data, measure).held_out
    rows = [row for row in map(Conversation.from_row, held_out.select(range(min(ROWS, len(held_out))))) if _asks(row)]
    if not rows:
        return
    longest = max(len(tokenizer(row.answer)["input_ids"]) for row in rows)
    decoding = Decoding(min(NEW_TOKENS, 2 * longest + 8), template.stops)
    requests = make_requests(rows, template, tokenizer, decoding)
    requests = fit(requests, context_length(run.recipe.model, tokenizer), follows=True).requests
    for target in waiting:
        backend = LocalBackend(widen(target.load()), tokenizer, run.recipe.evaluation.batch_size, pictures)
        _write(target, template, backend, requests, rows)


def locate_answers(target: Target) -> ScoreFolder:
    """Return where a target's answers to held-out rows are."""
    digest = hashlib.sha256(f"1 {target.digest}".encode()).hexdigest()[:8]
    return locate_scores(target.folder, target.who, HELD_OUT, digest)


def _write(
    target: Target, template: Template, backend: LocalBackend, requests: list[Request], rows: list[Conversation]
) -> None:
    backend.end_turns_of(template if isinstance(template, ChatTemplate) else None)
    folder = locate_answers(target)
    found = complete_all(backend, requests, folder).completions
    if is_main_process():
        samples = [
            Sample(row.question, row.answer, one.text, {}, row.images) for row, one in zip(rows, found, strict=True)
        ]
        write_samples(folder, samples)


def _asks(row: Conversation) -> bool:
    """Whether the row ends in an answer: a row of text alone asks nothing."""
    return len(row.messages) > 1 and row.messages[-1].role == "assistant"
