"""What training changed of each score, and the sentence that a run's page begins with."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from milora.comparison.statistics import correct_for_many
from milora.evaluation.benchmarks.benchmark import BLIND
from milora.evaluation.scores import Scores, format_metric
from milora.report.samples import Reading
from milora.report.tables import format_p
from milora.run.records import TrainingRecord

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """A task's scores before and after training; `base` is None if only the trained model was scored.

    Of the items that both were graded on as right or wrong, `gained` are right only after training and `lost` only
    before; `p` is that of an exact sign test of these two (McNemar's), None for scores that are not such verdicts.
    """

    task: str
    base: Scores | None
    trained: Scores
    gained: int = 0
    lost: int = 0
    p: float | None = None

    @property
    def is_share(self) -> bool:
        return self.trained.unit == "share"

    @property
    def difference(self) -> float:
        return self.trained.headline.value - (self.base.headline.value if self.base else 0.0)

    @property
    def said(self) -> str:
        """The difference in words; empty without a base."""
        if self.base is None:
            return ""
        if self.is_share:
            points = f"{100 * self.difference:+.1f}".replace("-", "−")
            return "no change" if points[1:] == "0.0" else f"{points} points"
        return f"{self.difference:+.3f}".replace("-", "−")


def find_change(task: str, base: Scores | None, trained: Scores, readings: Sequence[Reading]) -> Change:
    """Return what changed; `readings` have the base's answer first and the trained model's second."""
    pairs = [reading.verdicts for reading in readings if len(reading.answers) == 2 and "-" not in reading.verdicts]
    if base is None or not pairs or trained.unit != "share":
        return Change(task, base, trained)
    gained, lost = pairs.count("01"), pairs.count("10")
    return Change(task, base, trained, gained, lost, sign_test(gained, lost))


def sign_test(gained: int, lost: int) -> float:
    """Return p of an exact sign test (McNemar's): of this many or fewer of either, if both are equally likely."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def say_headline(changes: Sequence[Change], training: TrainingRecord) -> str:
    """Return the one sentence that says what came of a run: of its scores, else of its loss on held-out rows."""
    known = [change for change in changes if change.base is not None and not change.task.endswith(BLIND)]
    if len(known) == 1:
        return _say_one(known[0])
    if known:
        return _say_many(known)
    if training.held_out_loss:
        before, after = (f"{loss:.3f}" for loss in training.held_out_loss)
        if before == after:
            return f"The loss on held-out rows stayed at {before} nats per token."
        verb = "fell" if float(after) < float(before) else "rose"
        return f"The loss on held-out rows {verb} from {before} to {after} nats per token."
    return f"Trained for {training.steps} steps; nothing was measured on other rows."


def _say_one(change: Change) -> str:
    assert change.base is not None
    before, after = (
        format_metric(scores.headline, scores.unit).partition(" (")[0] for scores in (change.base, change.trained)
    )
    if before == after:
        return f"{change.task} stayed at {after} of {change.trained.count} items{_say_swapped(change)}."
    verb = "rose" if change.difference > 0 else "fell"
    moved = f"{change.task} {verb} from {before} to {after} on {change.trained.count} items"
    if change.p is None:
        return f"{moved}."
    if change.p >= SIGNIFICANT:
        return f"{moved}, which is too few to tell the change from chance ({say_p(change.p)})."
    return f"{moved}: {change.gained} are right only after training, {change.lost} only before ({say_p(change.p)})."


def _say_swapped(change: Change) -> str:
    return f"; {change.gained} are right only after training, {change.lost} only before" if change.gained else ""


def _say_many(known: Sequence[Change]) -> str:
    """Counts of tasks whose change is not chance, corrected for their number (Holm)."""
    tested = [change for change in known if change.p is not None]
    if not tested:
        return f"{sum(change.difference > 0 for change in known)} of {len(known)} scores rose."
    corrected = correct_for_many([change.p for change in tested if change.p is not None])
    certain = [change for change, p in zip(tested, corrected, strict=True) if p < SIGNIFICANT]
    risen = [change.task for change in certain if change.difference > 0]
    fallen = [change.task for change in certain if change.difference < 0]
    unclear = len(tested) - len(certain)
    parts = [f"{_name(risen)} rose"] if risen else []
    parts += [f"{_name(fallen)} fell"] if fallen else []
    parts += [f"the change of {unclear} of {len(tested)} tasks cannot be told from chance"] if unclear else []
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}." if unclear and not certain else f"{said}."


def _name(tasks: Sequence[str]) -> str:
    if len(tasks) > 4:
        return f"{len(tasks)} tasks"
    *first, last = tasks
    return f"{', '.join(first)} and {last}" if first else last


def say_p(value: float) -> str:
    return f"p {'' if value < 0.001 else '= '}{format_p(value)}"
