"""What a user reads before training: what will be trained on, for how long, and one row as the model sees it."""

from itertools import groupby

from transformers import PreTrainedTokenizerBase

from milora.data.tokens import IGNORED
from milora.method.options import Layout
from milora.run.directory import step_of
from milora.run.recipe import Recipe
from milora.run.records import TokenReport
from milora.training.arguments import count_steps
from milora.training.prepare import Preparation
from milora.training.rows import Rows

LAYOUTS: dict[Layout, str] = {
    "documents": "rows packed, attention row by row",
    "mask": "rows packed, attention under a mask",
    "padded": "rows padded",
}
SHOWN = 600  # characters of the row


def announce(recipe: Recipe, prepared: Preparation) -> str:
    """Return a summary in a few lines; in the row, what is trained is in brackets: ⟦…⟧."""
    lines = [
        f"training on {describe_rows(recipe, prepared.rows)}; {LAYOUTS[prepared.layout]}",
        f"first row: {render_row(prepared.rows, prepared.tokenizer)}",
    ]
    if prepared.checkpoint:
        lines.append(f"resuming at step {step_of(prepared.checkpoint)}, from {prepared.checkpoint}")
    return "\n".join(lines)


def describe_rows(recipe: Recipe, rows: Rows) -> str:
    """Return how many rows, tokens and steps there are, and what was left out, in one line."""
    report = rows.report
    held_out = _count(len(rows.held_out), rows.held_out_report) if rows.held_out and rows.held_out_report else "0"
    steps, share = count_steps(recipe, len(rows.train)), report.trained / report.tokens
    return (
        f"{_count(len(rows.train), report)} rows, {held_out} held out; {report.tokens:,} tokens, "
        f"{share:.0%} of them trained; {steps:,} steps of {recipe.training.batch_size} rows; template {rows.template}"
    )


def _count(rows: int, report: TokenReport) -> str:
    """The number, and in parentheses what is missing of them."""
    lost = {
        "cut": report.truncated,
        "dropped for their length": report.dropped,
        "dropped as bad": report.bad,
        "left out as longer than data.max_tokens": report.long,
        "left out as copies of held-out rows": report.copies,
    }
    said = ", ".join(f"{count:,} {what}" for what, count in lost.items() if count)
    return f"{rows:,} ({said})" if said else f"{rows:,}"


def render_row(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the beginning of the first row as the model sees it, with what is trained in brackets."""
    row = rows.train[0]
    text = ""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    for is_trained, part in groupby(pairs, lambda pair: pair[1] != IGNORED):
        said = str(tokenizer.decode([token for token, _ in part]))
        text += f"⟦{said}⟧" if is_trained else said
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]} …")
