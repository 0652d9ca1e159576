"""What a user reads before training: what will be trained on, for how long, and one row as the model sees it."""

from itertools import groupby

from milora.data.tokens import IGNORED
from milora.run.directory import step_of
from milora.run.recipe import Recipe
from milora.training.arguments import count_steps
from milora.training.prepare import Preparation

SHOWN = 600  # characters of the row


def announce(recipe: Recipe, prepared: Preparation) -> str:
    """Return a summary in a few lines; in the row, what is trained is in brackets: ⟦…⟧."""
    rows, report = prepared.rows, prepared.rows.report
    lost = {"cut": report.truncated, "dropped for their length": report.dropped, "dropped as bad": report.bad}
    counts = [f"{len(rows.train):,} rows", f"{len(rows.held_out) if rows.held_out else 0:,} held out"]
    counts += [f"{count:,} {what}" for what, count in lost.items() if count]
    steps, share = count_steps(recipe, len(rows.train)), report.trained / report.tokens
    lines = [
        f"training on {', '.join(counts)}; {report.tokens:,} tokens, {share:.0%} of them trained; {steps:,} steps of "
        f"{recipe.training.batch_size} rows; template {rows.template}",
        f"first row: {_render(prepared)}",
    ]
    if prepared.checkpoint:
        lines.append(f"resuming at step {step_of(prepared.checkpoint)}, from {prepared.checkpoint}")
    return "\n".join(lines)


def _render(prepared: Preparation) -> str:
    row = prepared.rows.train[0]
    text = ""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    for is_trained, part in groupby(pairs, lambda pair: pair[1] != IGNORED):
        said = str(prepared.tokenizer.decode([token for token, _ in part]))
        text += f"⟦{said}⟧" if is_trained else said
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]} …")
