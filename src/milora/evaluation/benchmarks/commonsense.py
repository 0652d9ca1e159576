"""The eight commonsense sets as LLM-Adapters poses them: four beams, 32 new tokens, a choice named in words."""

from milora.data.sets import COMMONSENSE as FOLDERS
from milora.data.templates import TextTemplate
from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.graders.choices import corrected_choice, official_choice

# LLM-Adapters' commonsense_evaluate.py: one space less in the first line than in training, none in the blank one.
PROMPT = TextTemplate(
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
    "\n\n                ### Instruction:\n                {question}\n\n"
    "                ### Response:\n                "
)
ANSWERS = tuple(f"answer{number}" for number in range(1, 6))
CHOICES = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
}

COMMONSENSE = tuple(
    Benchmark(
        name=name,
        version=4,
        prompt=PROMPT,
        grade=grade_text(official_choice(CHOICES.get(name, ANSWERS)), corrected_choice(CHOICES.get(name, ANSWERS))),
        max_new_tokens=32,
        beams=4,
    )
    for name in FOLDERS
)
