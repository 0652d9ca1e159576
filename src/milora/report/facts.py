"""What a run's records say, as names and values to read."""

from milora.run.environment import Environment
from milora.run.recipe import Recipe, list_recipes, load_recipe
from milora.run.records import TrainingRecord
from milora.run.settings import Settings

Facts = list[tuple[str, str]]


def list_training(recipe: Recipe, training: TrainingRecord) -> Facts:
    """Return what was trained on what, and how."""
    settings, data = recipe.training, training.data
    steps = f"{training.steps:,} of {settings.batch_size} rows"
    if training.kept_step != training.steps:
        steps += f"; the weights of step {training.kept_step} were kept"
    rows = f"{data.rows:,}, in the template {training.template}, {_say_layout(training)}"
    rate = f"{settings.learning_rate:g}, {settings.schedule}"
    return [
        ("Steps", steps),
        ("Rows", rows),
        *([("Left out", said)] if (said := _say_left_out(recipe, training)) else []),
        ("Tokens", f"{data.tokens:,}, of which {data.trained:,} count in the loss"),
        ("Learning rate", rate),
        ("Trainable parameters", f"{training.parameters.trainable:,} of {training.parameters.total:,}"),
        ("‖ΔW‖", f"{training.weight_change:.3g}"),
    ]


def list_costs(training: TrainingRecord, environment: Environment) -> Facts:
    """Return what training took."""
    resumed = f" since it was resumed at step {training.resumed_at}" if training.resumed_at else ""
    processes = "" if training.processes == 1 else f", {training.processes} processes under {training.launcher}"
    found = [("Time", f"{say_seconds(training.seconds)}{resumed}, {training.seconds_per_step:.2f} s a step{processes}")]
    if training.tokens_per_second:
        found.append(("Speed", f"{training.tokens_per_second:,.0f} real tokens per second"))
    if training.mfu:
        peak = f"{training.mfu:.0%} of the peak of {training.processes} {environment.gpus[0]}"
        found.append(("Utilization", f"{peak} (4 operations per token for a frozen weight, 6 for a trained one)"))
    which = " of the first process" if training.processes > 1 else ""
    return [
        *found,
        ("Peak memory", f"{training.peak_memory / 1e9:.2f} GB{which}"),
        ("Initialization", say_seconds(training.initialization_seconds)),
        ("Saved", f"{training.parameters.stored:,} numbers"),
    ]


def list_differences(recipe: Recipe) -> tuple[str, list[tuple[str, str, str]]]:
    """Return what a recipe started from, and its keys that differ: (key, its value, the parent's).

    What is not a shipped recipe's child is compared with the defaults.
    """
    own = flatten(recipe.model_dump(exclude={"name", "description", "parent"}))
    if recipe.parent in list_recipes():
        parent = load_recipe(recipe.parent)
        theirs, name = flatten(parent.model_dump(exclude={"name", "description", "parent"})), recipe.parent
    else:
        bare = Recipe.model_validate({"name": "bare", "model": {"name": "none"}, "data": {"name": "none"}})
        theirs, name = flatten(bare.model_dump(exclude={"name", "description", "parent"})), "the defaults"
        theirs |= {"model.name": "", "data.name": ""}
    keys = [key for key in own | theirs if own.get(key) != theirs.get(key)]
    return name, [(key, _say(own.get(key)), _say(theirs.get(key))) for key in keys]


def flatten(settings: Settings, prefix: str = "") -> Settings:
    """Return nested settings by dotted key."""
    flat: Settings = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def say_seconds(seconds: float) -> str:
    """`3.2 s`, `5 min 12 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _say(value: object) -> str:
    """A value as a recipe spells it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{', '.join(map(_say, value))}]" if isinstance(value, list) else str(value)


def _say_layout(training: TrainingRecord) -> str:
    return "padded to equal lengths" if training.layout == "padded" else "packed end to end"


def _say_left_out(recipe: Recipe, training: TrainingRecord) -> str:
    data = training.data
    counts = (
        (data.truncated, f"answers were cut at {recipe.training.max_length} tokens"),
        (data.dropped, "rows were dropped because no answer fitted"),
        (data.bad, "rows were dropped because they could not be read"),
        (data.long, f"rows were left out because they have more than {recipe.data.max_tokens} tokens"),
        (data.copies, "rows were left out because a held-out row has the same text"),
    )
    return "; ".join(f"{count:,} {what}" for count, what in counts if count)
