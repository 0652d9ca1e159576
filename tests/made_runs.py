"""Finished runs that nothing trained: the records that a report reads, with any numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from milora.comparison.grid import Cell, Grid
from milora.comparison.results import Results, collect_results
from milora.evaluation.evaluate import locate_samples
from milora.evaluation.forgetting import CROSS_ENTROPY, FLOOR, FORGETTING
from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, Scores, Settings, measure_grades, write_scores
from milora.evaluation.target import target_of_run
from milora.run.directory import RunDirectory, create_run
from milora.run.environment import Environment
from milora.run.records import (
    CellRecord,
    Divergence,
    ParameterCounts,
    Spectra,
    StepLoss,
    TokenReport,
    TrainingRecord,
)

ENVIRONMENT = Environment({"milora": "0"}, "a processor", 2, [], None)
TRAINED = TrainingRecord(
    seconds=2.0,
    resumed_at=0,
    steps=2,
    seconds_per_step=1.0,
    tokens_per_step=10.0,
    initialization_seconds=1.0,
    processes=1,
    launcher="ddp",
    peak_memory=10**9,
    weight_change=1.5,
    kept_step=2,
    template="plain",
    layout="documents",
    data=TokenReport(8, 80, 40, 0, 0, 10),
    parameters=ParameterCounts(10, 100, 20),
    held_out_loss=(2.0, 1.0),
    losses=[StepLoss(1, 2.0), StepLoss(2, 1.0)],
)


def make_run(run: RunDirectory, **changes: object) -> RunDirectory:
    """A trained run; `changes` are those of its training record."""
    run.write(ENVIRONMENT)
    create_run(run)
    run.trained.mkdir()
    (run.trained / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    run.write(replace(TRAINED, **changes))
    run.write(Spectra({"model.layers.0.mlp.up_proj": [4.0, 3.0, 2.0, 1.0]}))
    return run


def make_scores(
    run: RunDirectory,
    grades: Sequence[float],
    task: str = "arithmetic",
    *,
    base: bool = False,
    asked: str = "item",
    answer: str = "1",
    images: Sequence[tuple[str, ...]] = (),
) -> Scores:
    """Score a made run, or its base, on a task, with these grades of its items."""
    target = target_of_run(run).base if base else target_of_run(run)
    samples = [
        Sample(f"{asked} {i}", "1", answer, {"corrected": Grade("1", grade)}, images[i] if images else ())
        for i, grade in enumerate(grades)
    ]
    scores = Scores(
        task, target.who, len(samples), "corrected", measure_grades(samples), Settings("", "1"), ENVIRONMENT,
        differ=0, no_answer=0,
    )  # fmt: skip
    write_scores(locate_samples(target, task, run.recipe.evaluation)[0], scores, samples)
    return scores


def make_forgetting(run: RunDirectory, nats: float, floor: float = 0.5, *, base: bool = False) -> None:
    target = target_of_run(run).base if base else target_of_run(run)
    metrics = {CROSS_ENTROPY: Metric(nats, None), FLOOR: Metric(floor, None)}
    scores = Scores(FORGETTING, target.who, 1, CROSS_ENTROPY, metrics, Settings("", "1"), ENVIRONMENT, unit="nats")
    samples = [Sample("a text", "", "", {})]
    write_scores(locate_samples(target, FORGETTING, run.recipe.evaluation)[0], scores, samples)


def finish_cell(run: RunDirectory) -> None:
    run.write(CellRecord(3.0))


def make_cell(
    cell: Cell, grades: Sequence[float], *, loss: float = 1.0, forgetting: float | None = None, asked: str = "item"
) -> None:
    """Make the run of a cell, trained and scored, and the scores of the base where the cell has them."""
    run = make_run(cell.run, held_out_loss=(2.0, loss))
    make_scores(run, grades, asked=asked)
    if cell.scores_base:
        make_scores(run, [0] * len(grades), base=True)
    if forgetting is not None:
        make_forgetting(run, forgetting)
        make_forgetting(run, 0.5, base=True)
    finish_cell(run)


def diverge(run: RunDirectory, step: int, learning_rate: float) -> None:
    run.write(ENVIRONMENT)
    create_run(run)
    run.write(Divergence("the gradient", step, learning_rate))


def finish(
    grid: Grid,
    grades: Mapping[str, Sequence[float]] | Callable[[Cell], Sequence[float] | None],
    *,
    loss: float = 1.0,
    forgetting: Mapping[str, float] | None = None,
    asked: str | Mapping[str, str] = "item",
) -> Results:
    """Make the runs of a grid that have grades: `grades` is {arm: its items'}, or a function of a cell."""
    for cell in grid.cells:
        found = grades(cell) if callable(grades) else grades.get(cell.arm)
        if found is not None:
            text = asked if isinstance(asked, str) else asked[cell.arm]
            make_cell(cell, found, loss=loss, forgetting=forgetting[cell.arm] if forgetting else None, asked=text)
    return collect_results(grid)
