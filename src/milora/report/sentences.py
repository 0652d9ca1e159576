"""What a comparison shows and what it cannot, in plain sentences."""

import math

from milora.comparison.grid import Grid
from milora.comparison.results import Arm, Results, Tested
from milora.models.embedded import EMBEDDED

SIGNIFICANT = 0.05


def say_what_it_shows(results: Results) -> list[str]:
    """Return one sentence per finding; a difference counts if new seeds would show it too, after Holm's correction."""
    said = [_say_ahead(task, tested) for task, tests in results.tests.items() for tested in tests if _holds(tested)]
    for task, tests in results.tests.items():
        if tests and not any(map(_holds, tests)):
            said.append(_say_even(task, tests))
        said += [_say_of_these_models(task, tested) for tested in tests if _holds_here_only(tested)]
    said += _say_edges(results.arms)
    measured = [(arm.best.forgetting.mean, arm.name) for arm in results.arms if arm.best.forgetting]
    if measured:
        least, most = min(measured), max(measured)
        said.append(
            f"At its best rate {least[1]} moved least from the base's predictions ({least[0]:.3f} nats per token) "
            f"and {most[1]} most ({most[0]:.3f}); the floor, a model that forgot nothing, is "
            f"{results.arms[0].best.floor:.3f}."
        )
    return said


def say_what_it_cannot(results: Results, grid: Grid) -> list[str]:
    """Return what the comparison is not evidence of."""
    recipe, comparison = grid.recipe, grid.comparison
    said = []
    if results.missing:
        said.append(f"{results.missing} runs are not finished: best rates and tests may change.")
    seeds = len(comparison.seeds)
    if seeds < 2:
        said.append("One seed: the results say nothing about other seeds, and there are no intervals over them.")
    elif seeds < 5:
        said.append(f"{seeds} seeds: intervals over seeds are wide, and only large differences can be shown.")
    if results.texts > 1:
        said.append("Forgetting was not measured on one text for all runs: its figures cannot be compared.")
    said.append(
        f"It is one model, {recipe.model.name}, one training set, {recipe.data.name}, and one budget: "
        "it does not say which method is better elsewhere."
    )
    if recipe.data.name == "arithmetic":
        said.append("The problems are synthetic: most of the gain over the base is the format of the answer.")
    if recipe.model.name == EMBEDDED:
        said.append(
            "The embedded model's weights were once stored in 4 bits: its smallest singular directions are largely "
            "quantization noise, which concerns MiLoRA and MiCA most."
        )
    if comparison.differs:
        said.append(f"Not the paper's conditions: {comparison.differs}")
    return said


def _holds(tested: Tested) -> bool:
    return tested.p_seeds is not None and tested.p_seeds < SIGNIFICANT


def _holds_here_only(tested: Tested) -> bool:
    return tested.p_items < SIGNIFICANT and not _holds(tested)


def _order(tested: Tested) -> tuple[str, str, float]:
    ahead, behind = tested.difference.arms
    if tested.difference.difference < 0:
        ahead, behind = behind, ahead
    return ahead, behind, 100 * abs(tested.difference.difference)


def _say_ahead(task: str, tested: Tested) -> str:
    ahead, behind, points = _order(tested)
    return f"{task}: {ahead} is ahead of {behind} by {points:.1f} points (p = {tested.p_seeds:.3f}, new seeds too)."


def _say_of_these_models(task: str, tested: Tested) -> str:
    ahead, behind, points = _order(tested)
    return (
        f"{task}: these trained models of {ahead} score {points:.1f} points above those of {behind} "
        f"(p = {tested.p_items:.3f} for new items), but this does not show that new seeds would, too."
    )


def _say_even(task: str, tests: list[Tested]) -> str:
    largest = max(100 * abs(tested.difference.difference) for tested in tests)
    showable = [100 * tested.difference.showable for tested in tests if tested.difference.showable is not None]
    said = f"{task}: no two methods can be told apart for new seeds; they differ by at most {largest:.1f} points"
    if showable and math.isfinite(min(showable)):
        said += f", and this sample could have shown {min(showable):.1f} to {max(showable):.1f}"
    return f"{said}."


def _say_edges(arms: list[Arm]) -> list[str]:
    alone = [arm.name for arm in arms if len(arm.points) == 1]
    edged = [arm for arm in arms if arm.at_edge and arm.name not in alone]
    low = [arm.name for arm in edged if arm.best is arm.points[0]]
    high = [arm.name for arm in edged if arm.best is arm.points[-1]]
    said = [f"The learning rate was not tuned for {', '.join(alone)}: one rate only."] if alone else []
    return said + [
        f"The best rate of {', '.join(names)} is the {which} of its grid: a better one may be outside."
        for names, which in ((low, "lowest"), (high, "highest"))
        if names
    ]
