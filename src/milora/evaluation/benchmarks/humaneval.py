"""HumanEval: greedy, 1024 new tokens as PiSSA has it, pass@1 in a sandbox."""

from milora.evaluation.benchmarks.benchmark import Benchmark, Grades
from milora.evaluation.graders.code import extract_function, official_function, program
from milora.evaluation.graders.grade import Grade
from milora.evaluation.sandbox.programs import run_programs
from milora.data.sets import Row


def grade_programs(completions: list[str], rows: list[Row]) -> list[Grades]:
    """Run every completion's function, as either extraction reads it, against its row's tests."""
    columns = []
    for extract in (official_function, extract_function):
        codes = [
            extract(completion, row["prompt"], row["entry_point"])
            for completion, row in zip(completions, rows, strict=True)
        ]
        programs = [program(code, row["test"], row["entry_point"]) for code, row in zip(codes, rows, strict=True)]
        outcomes = run_programs(programs)
        columns.append([Grade(code or None, outcome.passed) for code, outcome in zip(codes, outcomes, strict=True)])
    return [Grades(*both) for both in zip(*columns, strict=True)]


HUMANEVAL = Benchmark(
    name="humaneval",
    version=1,
    grade=grade_programs,
    official_prompt="code",
    max_new_tokens=1024,
    runs_code=True,
)
