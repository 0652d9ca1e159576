"""What a comparison shows and what it cannot, in plain sentences, each of which follows from its data."""

import math
from collections.abc import Iterable, Sequence

from milora.comparison.grid import Grid
from milora.comparison.pairs import Reason, Tested, Untested
from milora.comparison.results import Arm, Diverged, Results
from milora.models.embedded import EMBEDDED
from milora.report.tables import format_p
from milora.run.sections import AdapterSection

SIGNIFICANT = 0.05
REASONS: dict[Reason, str] = {
    "not scored": "one of the two was not scored on it",
    "no grades": "it has no grades of single items",
    "no seed": "they have no finished seed in common",
    "other items": "they were not asked the same items",
}


def say_what_it_shows(results: Results) -> list[str]:
    """Return one sentence per finding; a difference counts if new seeds would show it too, after Holm's correction."""
    said = [_say_ahead(task, tested) for task, tests in results.tests.items() for tested in tests if _holds(tested)]
    for task, tests in results.tests.items():
        said += _say_even(task, tests)
        said += [_say_of_these_models(task, tested) for tested in tests if _holds_here_only(tested)]
    said += _say_edges(results.arms)
    return said + _say_forgetting(results)


def say_what_it_cannot(results: Results, grid: Grid) -> list[str]:
    """Return what the comparison is not evidence of."""
    said = _say_failures(results, grid)
    if len(results.arms) == 1:
        said.append(f"There is only one method, {results.arms[0].name}, to show: nothing is compared.")
    said += [_say_untested(task, pair) for task, pairs in results.untested.items() for pair in pairs]
    seeds = len(grid.comparison.seeds)
    if seeds < 2:
        said.append("One seed: the results say nothing about other seeds, and the intervals are for other items alone.")
    elif seeds < 5:
        said.append(f"{seeds} seeds: intervals for new seeds are wide, and only large differences can be shown.")
    tuning = grid.comparison.tuning_seeds
    if tuning is not None and tuning < seeds:
        said.append(f"Each learning rate was chosen on {tuning} of {seeds} seeds.")
    if results.texts > 1:
        said.append("Forgetting was not measured on one text for all runs: its figures cannot be compared.")
    said += _say_conditions(grid)
    if grid.comparison.differs:
        said.append(f"Not the paper's conditions: {grid.comparison.differs}")
    return said


def _holds(tested: Tested) -> bool:
    return tested.p_seeds is not None and tested.p_seeds < SIGNIFICANT


def _holds_here_only(tested: Tested) -> bool:
    return tested.p_items < SIGNIFICANT and not _holds(tested)


def _order(tested: Tested) -> tuple[str, str, str]:
    ahead, behind = tested.difference.arms
    if tested.difference.difference < 0:
        ahead, behind = behind, ahead
    return ahead, behind, f"{100 * abs(tested.difference.difference):.1f}"


def _say_p(value: float) -> str:
    return f"p {'' if value < 0.001 else '= '}{format_p(value)}"


def _say_ahead(task: str, tested: Tested) -> str:
    ahead, behind, points = _order(tested)
    assert tested.p_seeds is not None
    return f"{task}: {ahead} is ahead of {behind} by {points} points ({_say_p(tested.p_seeds)}, new seeds too)."


def _say_of_these_models(task: str, tested: Tested) -> str:
    ahead, behind, points = _order(tested)
    return (
        f"{task}: these trained models of {ahead} score {points} points above those of {behind} "
        f"({_say_p(tested.p_items)} for new items), but this does not show that new seeds would, too."
    )


def _say_even(task: str, tests: list[Tested]) -> list[str]:
    if not tests or any(map(_holds, tests)):
        return []
    if not any(tested.difference.differing for tested in tests):
        return [f"{task}: the methods score the same on every item: nothing here tells them apart."]
    largest = max(100 * abs(tested.difference.difference) for tested in tests)
    showable = [100 * tested.difference.showable for tested in tests if tested.difference.showable is not None]
    if not showable:
        return [f"{task}: no pair can be tested for new seeds; these models differ by at most {largest:.1f} points."]
    said = f"{task}: no two methods can be told apart for new seeds; they differ by at most {largest:.1f} points"
    if math.isfinite(min(showable)):
        least, most = f"{min(showable):.1f}", f"{max(showable):.1f}"
        said += f", and this sample could have shown {least if least == most else f'{least} to {most}'}"
    return [f"{said}."]


def _say_untested(task: str, pair: Untested) -> str:
    one, other = pair.arms
    return f"{task}: {one} and {other} are not tested against each other: {REASONS[pair.reason]}."


def _say_edges(arms: list[Arm]) -> list[str]:
    alone = [arm.name for arm in arms if len(arm.rates) == 1]
    edged = [arm for arm in arms if arm.at_edge and arm.name not in alone]
    low = [arm.name for arm in edged if arm.best.learning_rate == arm.rates[0]]
    high = [arm.name for arm in edged if arm.best.learning_rate == arm.rates[-1]]
    said = [f"The learning rate was not tuned for {', '.join(alone)}: one rate only."] if alone else []
    return said + [
        f"The best rate of {', '.join(names)} is the {which} of its grid: a better one may be outside."
        for names, which in ((low, "lowest"), (high, "highest"))
        if names
    ]


def _say_forgetting(results: Results) -> list[str]:
    """Ranks are those of the printed figures: what prints alike is not ranked."""
    measured = {arm.name: f"{arm.best.forgetting.mean:.3f}" for arm in results.arms if arm.best.forgetting}
    if not measured or results.floor is None:
        return []
    least, most = (choose(measured.values(), key=float) for choose in (min, max))
    if least == most:
        moved = (
            f"At the best rate of each, {_join(measured)} moved from the base's predictions to {least} nats per token"
        )
    else:
        first, last = (_join(name for name, value in measured.items() if value == end) for end in (least, most))
        moved = (
            f"At the best rate of each, {first} moved least from the base's predictions ({least} nats per token) "
            f"and {last} most ({most})"
        )
    return [f"{moved}; the floor, a model that forgot nothing, is {results.floor:.3f}."]


def _say_failures(results: Results, grid: Grid) -> list[str]:
    points: dict[tuple[str, float], list[Diverged]] = {}
    for run in results.diverged:
        points.setdefault((run.arm, run.learning_rate), []).append(run)
    said = [_say_diverged(runs) for runs in points.values()]
    if results.missing:
        are = "1 run is" if results.missing == 1 else f"{results.missing} runs are"
        said.append(f"{are} not finished: best rates and tests may change.")
    absent = [name for name in grid.comparison.arms if name not in {arm.name for arm in results.arms}]
    if absent:
        said.append(
            f"{_join(absent)} {'has' if len(absent) == 1 else 'have'} no finished run, and no row in the tables."
        )
    return said


def _say_diverged(runs: Sequence[Diverged]) -> str:
    """One sentence for the runs of an arm at a rate."""
    first = runs[0]
    what = _join(dict.fromkeys(run.found.what for run in runs))
    steps = _join(dict.fromkeys(f"{run.found.step}" for run in runs))
    where = f"{first.arm} at learning rate {first.learning_rate:g}"
    if len(runs) == 1:
        said = f"{where}, seed {first.seed}, is not a trained run: training diverged at step {steps}"
    else:
        seeds = _join(f"{run.seed}" for run in runs)
        said = f"{where}, seeds {seeds}, are not trained runs: training diverged at step {steps}"
    return f"{said} ({what} is not finite)."


def _say_conditions(grid: Grid) -> list[str]:
    recipes = [cell.run.recipe for cell in grid.cells]
    models = {recipe.model.name for recipe in recipes}
    sets = {recipe.data.title for recipe in recipes}
    budgets = {
        (recipe.training.max_steps, recipe.training.epochs, recipe.training.batch_size, recipe.data.rows)
        for recipe in recipes
    }
    one = [f"one model, {_join(models)}"] if len(models) == 1 else []
    one += [f"one training set, {_join(sets)}"] if len(sets) == 1 else []
    one += ["one budget"] if len(budgets) == 1 else []
    said = [f"It is {', '.join(one)}: it does not say which method is better elsewhere."] if one else []
    different = [
        what for what, found in (("models", models), ("training sets", sets), ("budgets", budgets)) if len(found) > 1
    ]
    if different:
        said.append(f"The arms have different {_join(different)}: they do not differ in the method alone.")
    if sets == {"arithmetic"}:
        said.append("The problems are synthetic, and a gain over the base includes learning the format of the answer.")
    if models == {EMBEDDED}:
        concerned = {cell.arm: None for cell in grid.cells if _starts_at_the_minor_end(cell.run.recipe.adapter)}
        most = f", which concerns {_join(concerned)} most" if concerned else ""
        said.append(
            "The embedded model's weights were once stored in 4 bits: its smallest singular directions are largely "
            f"quantization noise{most}."
        )
    return said


def _starts_at_the_minor_end(adapter: AdapterSection) -> bool:
    return adapter.method == "mica" or (adapter.method == "milora" and adapter.components == "minor")


def _join(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
