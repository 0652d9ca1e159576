"""A comparison's results as tables: to read, to paste into a paper, and to compute with."""

import csv
import io
from typing import Literal

from tabulate import tabulate

from milora.comparison.pairs import Tested
from milora.comparison.plan import Comparison
from milora.comparison.results import COSTS, Arm, Point, Results
from milora.comparison.statistics import Interval
from milora.evaluation.scores import format_interval

INTERVALS = (
    "In parentheses: 95 % intervals. Those of scores are for new items and, with several seeds, new seeds too: "
    "Wilson's where each grade is right or wrong, Student's otherwise. Those of losses and forgetting are Student's "
    "over seeds. The base's are for new items."
)
Format = Literal["simple", "github", "latex_booktabs"]


def format_arms(results: Results, comparison: Comparison, form: Format) -> str:
    """Each arm at its best learning rate, the base first, the paper's figure beside ours if there is one."""
    headers, rows = tabulate_arms(results, comparison)
    table = tabulate(rows, headers, tablefmt=form, disable_numparse=True, stralign="right")
    return table if form == "latex_booktabs" else f"{table}\n\n{INTERVALS}"


def tabulate_arms(results: Results, comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: scores in percent, everything measured with its 95 % interval.

    There is a column for every task's headline, and for every other metric of which the paper has a figure.
    """
    tasks = list(dict.fromkeys(task for arm in results.arms for task in arm.best.scores))
    printed = dict.fromkeys(name for figures in comparison.paper.values() for name in figures)
    shown = [name for task in tasks for name in (task, *(name for name in printed if name.startswith(f"{task}/")))]
    columns = [(name, who) for name in shown for who in (("ours", "paper") if name in printed else ("ours",))]
    headers = ["method", "learning rate", "seeds", "validation loss"]
    headers += [f"{task}, %" if who == "ours" else f"{task}, paper" for task, who in columns]
    headers += ["forgetting", "‖ΔW‖", "seconds", "GB", "trainable"]
    blank = ["–"] * 5
    base = [_percent(results.base.get(task)) if who == "ours" else "–" for task, who in columns]
    rows = [["base", "–", "–", "–", *base, *blank]] if results.base else []
    for arm in results.arms:
        best = arm.best
        paper = comparison.paper.get(arm.name, {})
        ours = best.scores | best.metrics
        scores = [
            _percent(ours.get(name)) if who == "ours" else f"{paper[name]:.1f}" if name in paper else "–"
            for name, who in columns
        ]
        seeds = f"{len(best.seeds)}"
        rows.append([arm.name, _rate(arm), seeds, _nats(best.validation_loss), *scores, *_costs(arm)])
    return headers, rows


def tabulate_points(results: Results, comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: every planned rate of every method, means over the seeds that are finished."""
    tasks = list(results.tests)
    headers = ["method", "learning rate", "seeds", "validation loss", *(f"{task}, %" for task in tasks)]
    rows = []
    for name in comparison.arms:
        found = next((arm for arm in results.arms if arm.name == name), None)
        for rate in comparison.rates(name):
            point = next((point for point in found.points if point.learning_rate == rate), None) if found else None
            best = " (best)" if found and point is found.best else ""
            seeds = f"{len(point.seeds) if point else 0} of {len(comparison.seeds)}"
            rows.append([name, f"{rate:g}{best}", seeds + _say_diverged(results, name, rate), *_measured(point, tasks)])
    return [*headers, "forgetting", "‖ΔW‖"], rows


def _measured(point: Point | None, tasks: list[str]) -> list[str]:
    if point is None:
        return ["–"] * (len(tasks) + 3)
    return [
        f"{point.validation_loss.mean:.3f}",
        *(f"{100 * point.scores[task].mean:.1f}" if task in point.scores else "–" for task in tasks),
        "–" if point.forgetting is None else f"{point.forgetting.mean:.3f}",
        f"{point.costs['weight_change']:.3g}",
    ]


def _say_diverged(results: Results, arm: str, rate: float) -> str:
    steps = [str(run.found.step) for run in results.diverged if (run.arm, run.learning_rate) == (arm, rate)]
    return f"; {len(steps)} diverged, at step {', '.join(steps)}" if steps else ""


def tabulate_tests(tests: list[Tested]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a task's paired tests, in points, with Holm's p-values."""
    headers = [
        "pair",
        "seeds × items",
        "difference",
        "95 % interval",
        "p, these models",
        "p, new seeds too",
        "showable",
    ]
    rows = []
    for tested in tests:
        found = tested.difference
        between = "–" if found.low is None or found.high is None else f"{100 * found.low:.1f} … {100 * found.high:.1f}"
        rows.append(
            [
                f"{found.arms[0]} − {found.arms[1]}",
                f"{found.seeds} × {found.items}",
                f"{100 * found.difference:+.1f}" if found.difference else "0.0",
                between,
                format_p(tested.p_items),
                "–" if tested.p_seeds is None else format_p(tested.p_seeds),
                "–" if found.showable is None else f"{100 * found.showable:.1f}",
            ]
        )
    return headers, rows


def format_p(value: float) -> str:
    """A p-value is never 0."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


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


def _percent(found: Interval | None) -> str:
    return "–" if found is None else format_interval(found.mean, found.ends, 100, 1)


def _nats(found: Interval) -> str:
    return format_interval(found.mean, found.ends, 1, 3)


def _rate(arm: Arm) -> str:
    return f"{arm.best.learning_rate:g}" + (" (only)" if len(arm.rates) == 1 else " (edge)" if arm.at_edge else "")


def _costs(arm: Arm) -> list[str]:
    best, costs = arm.best, arm.best.costs
    forgetting = "–" if best.forgetting is None else _nats(best.forgetting)

    def show(key: str, form: str, unit: float = 1) -> str:
        return format(costs[key] / unit, form)

    return [
        forgetting,
        show("weight_change", ".3g"),
        show("seconds", ".0f"),
        show("peak_memory", ".2f", 1e9),
        show("trainable", ",.0f"),
    ]
