"""A comparison's results as tables: to read, to paste into a paper, and to compute with."""

import csv
import io
from typing import Literal

from tabulate import tabulate

from milora.comparison.plan import Comparison
from milora.comparison.results import COSTS, Arm, Results, Tested
from milora.comparison.statistics import Interval

Format = Literal["simple", "github", "latex_booktabs"]


def format_arms(results: Results, comparison: Comparison, form: Format) -> str:
    """Each arm at its best learning rate, the base first, the paper's figure beside ours if there is one."""
    headers, rows = tabulate_arms(results, comparison)
    return tabulate(rows, headers, tablefmt=form, disable_numparse=True, stralign="right")


def tabulate_arms(results: Results, comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: scores in percent with 95 % intervals over seeds."""
    tasks = list(dict.fromkeys(task for arm in results.arms for task in arm.best.scores))
    printed = {task for figures in comparison.paper.values() for task in figures}
    columns = [(task, who) for task in tasks for who in (("ours", "paper") if task in printed else ("ours",))]
    headers = ["method", "learning rate", "validation loss"]
    headers += [f"{task}, %" if who == "ours" else f"{task}, paper" for task, who in columns]
    headers += ["forgetting", "‖ΔW‖", "seconds", "GB", "trainable"]
    blank = ["–"] * 5
    base = [percent(results.base[task]) if who == "ours" and task in results.base else "–" for task, who in columns]
    rows = [["base", "–", "–", *base, *blank]] if results.base else []
    for arm in results.arms:
        best = arm.best
        paper = comparison.paper.get(arm.name, {})
        scores = [
            _percent_of(best.scores.get(task)) if who == "ours" else f"{paper[task]:.1f}" if task in paper else "–"
            for task, who in columns
        ]
        rows.append([arm.name, _rate(arm), _spread(best.validation_loss, 3), *scores, *_costs(arm)])
    return headers, rows


def tabulate_tests(tests: list[Tested]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a task's paired tests, in points, with Holm's p-values."""
    headers = ["pair", "difference", "95 % interval", "p, these models", "p, new seeds too", "showable"]
    rows = []
    for tested in tests:
        found = tested.difference
        between = "–" if found.low is None or found.high is None else f"{100 * found.low:.1f} … {100 * found.high:.1f}"
        seeds = "–" if tested.p_seeds is None else f"{tested.p_seeds:.3f}"
        showable = "–" if found.showable is None else f"{100 * found.showable:.1f}"
        rows.append(
            [
                f"{found.arms[0]} − {found.arms[1]}",
                f"{100 * found.difference:+.1f}",
                between,
                f"{tested.p_items:.3f}",
                seeds,
                showable,
            ]
        )
    return headers, rows


def format_tests(results: Results, form: Format) -> str:
    """The paired tests of every task, one table each."""
    parts = []
    for task, tests in results.tests.items():
        if tests:
            headers, rows = tabulate_tests(tests)
            parts.append(f"{task}\n" + tabulate(rows, headers, tablefmt=form, disable_numparse=True, stralign="right"))
    return "\n\n".join(parts)


def format_csv(results: Results) -> str:
    """One line per arm, learning rate and measure, with mean and interval: scores as shares, losses in nats."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "learning_rate", "is_best", "seeds", "measure", "mean", "low", "high"])
    for arm in results.arms:
        for point in arm.points:
            measures = {"validation_loss": point.validation_loss, **point.scores}
            if point.forgetting is not None:
                measures["forgetting"] = point.forgetting
            start = [arm.name, point.learning_rate, point is arm.best, " ".join(map(str, point.seeds))]
            for name, found in measures.items():
                writer.writerow([*start, name, found.mean, found.low, found.high])
            for name in COSTS:
                writer.writerow([*start, name, point.costs[name], None, None])
    return text.getvalue()


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _percent_of(found: Interval | None) -> str:
    if found is None:
        return "–"
    return _spread(found, 1, unit=100)


def _spread(found: Interval, digits: int, unit: float = 1) -> str:
    half = "" if found.high is None else f" ± {unit * (found.high - found.mean):.{digits}f}"
    return f"{unit * found.mean:.{digits}f}{half}"


def _rate(arm: Arm) -> str:
    return f"{arm.best.learning_rate:g}" + (" (only)" if len(arm.points) == 1 else " (edge)" if arm.at_edge else "")


def _costs(arm: Arm) -> list[str]:
    best, costs = arm.best, arm.best.costs
    forgetting = "–" if best.forgetting is None else _spread(best.forgetting, 3)

    def show(key: str, form: str, unit: float = 1) -> str:
        return format(costs[key] / unit, form)

    return [
        forgetting,
        show("weight_change", ".3g"),
        show("seconds", ".0f"),
        show("peak_memory", ".2f", 1e9),
        show("trainable", ",.0f"),
    ]
