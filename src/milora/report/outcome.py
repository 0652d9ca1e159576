"""What came of one run, and what it is evidence of, in words that follow from its record."""

from collections.abc import Sequence

from milora.evaluation.scores import Scores, format_table
from milora.models.embedded import EMBEDDED
from milora.run.recipe import Recipe
from milora.run.records import TrainingRecord


def describe_run(recipe: Recipe) -> str:
    """Return method, model, and data in one sentence: true of every run, whatever its recipe was made from."""
    adapter, model = recipe.adapter, recipe.model.name
    if recipe.model.quantization:
        model += f" in {recipe.model.quantization}"
    if adapter.method == "full":
        return f"Full fine-tuning of {model} on {recipe.data.title}."
    named = isinstance(adapter.components, str)
    band = f"{adapter.components} components" if named else f"components at {adapter.components} of the spectrum"
    start = f", {band}, {adapter.form} form" if adapter.method == "milora" else ""
    return (
        f"Method {adapter.method}, rank {adapter.rank}{start}: an adapter of {model}, trained on {recipe.data.title}."
    )


def format_outcome(training: TrainingRecord, scores: Sequence[Scores]) -> str:
    """A plain table of the scores, and the loss on held-out rows before and after training."""
    lines = [format_table(scores)] if scores else ["no task was scored (evaluation.tasks is empty)"]
    if training.held_out_loss:
        before, after = training.held_out_loss
        lines.append(f"held-out loss    {before:.3f} → {after:.3f} nats per token")
    return "\n".join(lines)


def say_evidence(recipe: Recipe, training: TrainingRecord, is_scored: bool) -> list[str]:
    """Return what the run shows, and what it is not evidence of; `is_scored` on a task."""
    said = [
        f"This run is one seed at one learning rate on {recipe.model.name}: it does not show how the method, "
        f"{recipe.adapter.method}, compares with any other.",
        _say_learning(training, is_scored),
    ]
    if recipe.data.name == "arithmetic":
        said.append("The problems that it was trained on are synthetic.")
    if recipe.model.name == EMBEDDED:
        said.append(
            "The embedded model's weights were once stored in 4 bits, so its smallest singular directions are largely "
            "quantization noise."
        )
    return said


def _say_learning(training: TrainingRecord, is_scored: bool) -> str:
    if training.held_out_loss is None:
        shown = "the scores alone show" if is_scored else "nothing here shows"
        return f"No rows were held out: {shown} what it learned beyond the rows that it was trained on."
    before, after = (f"{loss:.3f}" for loss in training.held_out_loss)
    fell = "fell" if float(after) < float(before) else "did not fall"
    return f"The loss on held-out rows {fell}: {before} before training, {after} after."
