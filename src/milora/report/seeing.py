"""What a model sees: its answers to questions about pictures, and to the same questions about gray ones."""

from collections.abc import Mapping, Sequence

from milora.evaluation.benchmarks.benchmark import BLIND
from milora.report.changes import SIGNIFICANT, say_p, sign_test
from milora.report.samples import Reading


def say_seeing(readings: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Return one sentence for each task that the trained model was also asked blind, on the items graded in both."""
    said = []
    for task, seen in readings.items():
        pairs = [a + b for a, b in zip(_verdicts(seen), _verdicts(readings.get(task + BLIND, [])), strict=False)]
        pairs = [pair for pair in pairs if "-" not in pair]
        if pairs:
            said.append(_say(task, pairs))
    return said


def _verdicts(readings: Sequence[Reading]) -> list[str]:
    """Those of the trained model, whose answer is the last."""
    return [reading.verdicts[-1] for reading in readings]


def _say(task: str, pairs: Sequence[str]) -> str:
    seeing, blind = (sum(pair[place] == "1" for pair in pairs) for place in (0, 1))
    gained, lost = pairs.count("10"), pairs.count("01")
    p = sign_test(gained, lost)
    counted = f"{task}: {seeing} of {len(pairs)} right with the pictures, {blind} with gray ones in their place"
    if p >= SIGNIFICANT:
        return f"{counted}; that cannot be told from chance ({say_p(p)}), so nothing shows that it uses the pictures."
    return f"{counted}; {gained} are right only with the picture, {lost} only without ({say_p(p)})."
