"""HumanEval: greedy, 1024 new tokens as PiSSA has it, pass@1 in a sandbox."""

from milora.data.conversation import Conversation
from milora.data.templates import TEMPLATES
from milora.evaluation.benchmarks.benchmark import HEADLINE, Benchmark, Grades
from milora.evaluation.graders.code import extract_function, official_function, program
from milora.evaluation.graders.grade import Grade
from milora.evaluation.sandbox.programs import run_programs


def grade_programs(completions: list[str], rows: list[Conversation]) -> Grades:
    """Run every completion's function, as each of the two extractions reads it, against its row's tests."""
    grades = {}
    for grader, extract in ((HEADLINE, extract_function), ("official", official_function)):
        tests = [row.fields for row in rows]
        codes = [
            extract(completion, test["prompt"], test["entry_point"])
            for completion, test in zip(completions, tests, strict=True)
        ]
        programs = [program(code, test["test"], test["entry_point"]) for code, test in zip(codes, tests, strict=True)]
        outcomes = run_programs(programs)
        grades[grader] = [
            Grade(code or None, float(outcome.passed)) for code, outcome in zip(codes, outcomes, strict=True)
        ]
    return grades


HUMANEVAL = Benchmark(
    name="humaneval",
    version=2,
    prompt=TEMPLATES["alpaca"],
    grade=grade_programs,
    max_new_tokens=1024,
    runs_code=True,
)
