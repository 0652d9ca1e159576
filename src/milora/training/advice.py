"""What is probably not meant in a recipe that can be trained."""

from statistics import median

from transformers import PreTrainedTokenizerBase

from milora.data.templates import TEMPLATES
from milora.data.tokens import IGNORED
from milora.run.recipe import Recipe
from milora.training.estimate import Size
from milora.training.rows import Rows

# Wide bounds around the rates of the shipped recipes and comparisons: adapters 2e-5 to 3e-3. LoRA+ multiplies that of
# B, by 16 unless told otherwise; full fine-tuning moves every weight and has lower ones.
ADAPTERS, OWN_RATES = (1e-5, 5e-3), {"full": (1e-7, 3e-4), "loraplus": (1e-6, 1e-3)}
LOOKED_AT = 1000  # rows
MANY = 0.1  # of the rows


def advise_on_size(recipe: Recipe, size: Size) -> list[str]:
    """Return warnings that follow from the recipe and the model's shapes."""
    adapter, rate = recipe.adapter, recipe.training.learning_rate
    lowest, highest = OWN_RATES.get(adapter.method, ADAPTERS)
    warnings = []
    if not lowest <= rate <= highest:
        warnings.append(
            f"training.learning_rate={rate:g} is far from what works for {adapter.method}: usual rates are "
            f"{lowest:g} to {highest:g}"
        )
    small = {name: side for name, side in size.layers.items() if side < adapter.rank}
    if small and not adapter.rank_pattern:
        name, side = min(small.items(), key=lambda pair: pair[1])
        warnings.append(
            f"adapter.rank={adapter.rank} is above the size of {len(small)} layers; {name} has {side}: set "
            "adapter.rank_pattern"
        )
    return warnings


def advise_on_rows(recipe: Recipe, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return warnings that follow from the rows as tokens."""
    warnings, count = [], len(rows.train)
    looked = rows.train[: min(LOOKED_AT, count)]["labels"]
    trained = [[label for label in labels if label != IGNORED] for labels in looked]
    if median(map(len, trained)) <= 2:
        warnings.append(
            "most answers are one token: little is learned from such a row, and most of the work is on tokens that are "
            "not trained"
        )
    if not any(_ends(labels, tokenizer) for labels in trained):
        warnings.append(
            f"no row ends with a trained control token in the first {len(looked)}: the model would not learn to stop; "
            f"raise training.max_length={recipe.training.max_length} if answers are cut"
        )
    if rows.report.truncated > MANY * count:
        warnings.append(
            f"{rows.report.truncated:,} of {count:,} rows are cut: raise training.max_length, or leave them out with "
            "data.max_tokens"
        )
    if tokenizer.chat_template and rows.template in TEMPLATES:
        warnings.append(
            f"the model has a chat template, and data.template={rows.template} does not use it: an instruct model is "
            "trained away from its own form"
        )
    return warnings


def _ends(labels: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a control token is among the last two: a template may train a newline after it."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(token for token, content in added.items() if content.special)}
    return any(label in special for label in labels[-2:])
