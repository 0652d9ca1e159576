"""The exact bytes of every prompt, in training and in evaluation, on a real row."""

from milora.data.conversation import Conversation
from milora.data.sets import COMMONSENSE as COMMONSENSE_FOLDERS
from milora.data.templates import TEMPLATES
from milora.evaluation.benchmarks import BENCHMARKS, GROUPS, SUITES

ASKED = Conversation.of_turn("How many?", "Two.").prompt
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\nHow many?\n\n### Response:"
)
# LLM-Adapters indents its template by 16 spaces in the source, and the spaces are in the prompt.
COMMONSENSE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
    "\n"
    "                ### Instruction:\n"
    "                How many?\n"
    "                \n"
    "                ### Response:\n"
    "                "
)
COMMONSENSE_EVALUATION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
    "\n"
    "                ### Instruction:\n"
    "                How many?\n"
    "\n"
    "                ### Response:\n"
    "                "
)

TRAINING = {
    "plain": "Question: How many?\nAnswer:",
    "alpaca": ALPACA,
    "commonsense": COMMONSENSE,
    "peft": "Question: How many? Think step by step.\nAnswer:",
}
OFFICIAL = {
    "arithmetic": "Question: How many?\nAnswer:",
    "gsm8k": ALPACA + " Let's think step by step.",
    "math": ALPACA + " Let's think step by step.",
    **dict.fromkeys(COMMONSENSE_FOLDERS, COMMONSENSE_EVALUATION),
    "humaneval": ALPACA,
}


def test_training_prompts():
    assert {name: template.render(ASKED) for name, template in TEMPLATES.items()} == TRAINING


def test_evaluation_prompts():
    """Those of conversations and pictures have none of their own: it is the model's chat template."""
    official = {name: benchmark.prompt.render(ASKED) for name, benchmark in BENCHMARKS.items() if benchmark.prompt}
    assert official == OFFICIAL
    others = {name for name, benchmark in BENCHMARKS.items() if not (benchmark.prompt or benchmark.has_pictures)}
    assert others == {"alpaca_eval_1", *SUITES["instruction"], "mt_bench"}


def test_decoding_is_the_protocols():
    stops = ("Instruction:", "Instruction", "Response:", "Response")
    for name, length, beams, until in (
        ("gsm8k", 1024, 1, stops),
        ("math", 2048, 1, stops),
        ("humaneval", 1024, 1, ()),
        ("ifeval", 1280, 1, ()),
        ("mt_bench", 1024, 1, ()),
        *((name, 2048, 1, ()) for name in GROUPS["follow_bench"]),
        *((name, 1024 if name in ("scienceqa", "mmbench") else 128, 1, ()) for name in GROUPS["vision"]),
        *((name, 32, 4, ()) for name in COMMONSENSE_FOLDERS),
    ):
        benchmark = BENCHMARKS[name]
        assert (benchmark.max_new_tokens, benchmark.beams, benchmark.stops) == (length, beams, until)


def test_braces_in_a_question_stay():
    assert TEMPLATES["alpaca"].render(Conversation.of_turn("{question} {x}", "").prompt).count("{x}") == 1
