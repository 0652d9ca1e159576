"""The public data sets by name: where each is published, its files in a `data_dir`, and how its rows read."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from milora.data.conversation import Conversation
from milora.data.formats import read_conversations, text_of
from milora.data.instruction import join_levels, read_follow_bench, read_ifeval, read_mt_bench
from milora.data.problems import BadRowError, describe

Split = Literal["train", "validation", "test"]
Read = Callable[[Mapping[str, Any]], Conversation | None]

LLM_ADAPTERS = (
    "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a/"
)
ALPACA_EVAL = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/cd543a149df89434d8a54582c0151c0b945c3d20/"
FOLLOW_BENCH = "https://raw.githubusercontent.com/YJiangcm/FollowBench/6278f4c1377b4eafab737267b8b21acd52ea0e52/data/"
FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat/0e6d3e4beaab66f4d3f93db72541a4abab8af28d/fastchat/llm_judge/data/"
MILORA_AUTHORS = "https://raw.githubusercontent.com/sufenlp/MiLoRA/4740756d5d74700527d799a8d4a0c40dc9e92235/"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """`remote` holds, per split, what `datasets.load_dataset` is called with; it is empty if only local files are read.

    `read` turns a row into a conversation, with the fields that the set's benchmark grades by; None: the set leaves the
    row out. `join` goes through all conversations of a split, where some belong together.
    """

    read: Read
    files: dict[Split, str]
    remote: dict[Split, dict[str, Any]]
    join: Callable[[Iterable[Conversation]], Iterator[Conversation]] | None = None


def _hub(name: str, *splits: Split, config: str | None = None, kind: str = "") -> dict[Split, dict[str, Any]]:
    return {split: {"path": name, "name": config, "split": f"{split}{kind}"} for split in splits}


def _file(address: str, split: Split) -> dict[Split, dict[str, Any]]:
    return {split: {"path": "json", "data_files": address, "split": "train"}}


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Text, which may be empty: two of CodeAlpaca's answers are, and a published set stays as it is."""
    return text_of(row, column, may_be_empty=True)


def _read_gsm8k(row: Mapping[str, Any]) -> Conversation:
    worked, _, number = _cell(row, "answer").rpartition("\n#### ")
    worked = re.sub(r"<<.*?>>", "", worked)  # the calculator's annotations
    return Conversation.of_turn(_cell(row, "question"), f"{worked}\nThe answer is: {number.strip()}")


def _read_mawps(row: Mapping[str, Any]) -> Conversation:
    equation = re.sub(r"^[xX]=", "", _cell(row, "equation")).replace(".0", "")
    try:
        number = float(row["ans"])  # a few are written as text
    except (TypeError, ValueError) as error:
        raise BadRowError(f"column ans is {describe(row['ans'])}, not a number") from error
    return Conversation.of_turn(_cell(row, "original_text"), f"{equation} = {number:g}. The answer is: {number:g}")


def _read_math(row: Mapping[str, Any]) -> Conversation | None:
    if "instruction" in row:  # as the authors carry it
        return read_turn("instruction", "output")(row)
    return read_turn("problem", "solution")(row)


def _read_instruction(row: Mapping[str, Any]) -> Conversation:
    given = "" if row["input"] is None else _cell(row, "input")
    question = _cell(row, "instruction")
    return Conversation.of_turn(f"{question}\n{given}" if given else question, _cell(row, "output"))


def read_turn(question: str, answer: str) -> Read:
    """Return a reader of rows whose question and answer are in these columns."""
    return lambda row: Conversation.of_turn(_cell(row, question), _cell(row, answer))


def _read_first_block(row: Mapping[str, Any]) -> Conversation | None:
    """LoRA-GA's rule: an answer ends with its first block of code, closed if need be; one without any is left out."""
    before, fence, rest = _cell(row, "answer").partition("```")
    if not fence:
        return None
    return Conversation.of_turn(_cell(row, "query"), before + fence + rest.partition(fence)[0] + fence)


def _read_chosen(row: Mapping[str, Any]) -> Conversation:
    """The preferred conversation of a pair."""
    return read_conversations({"chosen": row["chosen"], "rejected": None})[0]


def _read_any(row: Mapping[str, Any]) -> Conversation:
    """A row whose columns say how it reads."""
    return read_conversations(row)[0]


def _read_humaneval(row: Mapping[str, Any]) -> Conversation:
    # The paper's prompt for code is not published, nor is PiSSA's outside its data; this is the plainest one.
    prompt = _cell(row, "prompt")
    return Conversation.of_turn(
        f"Complete the following Python function.\n\n```python\n{prompt.strip()}\n```",
        _cell(row, "canonical_solution"),
        prompt=prompt,
        test=_cell(row, "test"),
        entry_point=_cell(row, "entry_point"),
    )


def _read_alpaca_eval(row: Mapping[str, Any]) -> Conversation:
    """An instruction with the reference output, which may be empty, and who made it."""
    return Conversation.of_turn(
        _cell(row, "instruction"),
        _cell(row, "output"),
        generator=_cell(row, "generator"),
        dataset=_cell(row, "dataset"),
    )


def _commonsense(folder: str) -> NamedSet:
    """One of the eight sets as LLM-Adapters poses it, which is what the paper trains and evaluates on."""
    return NamedSet(
        _read_instruction,
        {"train": f"commonsense/{folder}/train.json", "test": f"commonsense/{folder}/test.json"},
        _file(f"{LLM_ADAPTERS}dataset/{folder}/train.json", "train")
        | _file(f"{LLM_ADAPTERS}dataset/{folder}/test.json", "test"),
    )


def _follow_bench(category: str) -> NamedSet:
    """One of FollowBench's six files."""
    file = f"{category}_constraints.json"
    return NamedSet(
        read_follow_bench(category),
        {"test": f"instruction/followbench/{file}"},
        _file(f"{FOLLOW_BENCH}{file}", "test"),
        join_levels,
    )


FOLLOW_CATEGORIES = ("content", "situation", "style", "format", "example", "mixed")
COMMONSENSE = {
    "boolq": "boolq",
    "piqa": "piqa",
    "social_i_qa": "social_i_qa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "openbookqa": "openbookqa",
}

NAMED_SETS: dict[str, NamedSet] = {
    "gsm8k": NamedSet(
        _read_gsm8k,
        {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
        _hub("openai/gsm8k", "train", "test", config="main"),
    ),
    "math": NamedSet(_read_math, {"test": "math/test.jsonl"}, _file(f"{MILORA_AUTHORS}data/MATH_test.jsonl", "test")),
    "mawps": NamedSet(
        _read_mawps,
        {"train": "mawps/trainset.json", "validation": "mawps/validset.json", "test": "mawps/testset.json"},
        {},
    ),
    **{name: _commonsense(folder) for name, folder in COMMONSENSE.items()},
    "humaneval": NamedSet(
        _read_humaneval, {"test": "code/HumanEval.jsonl.gz"}, _hub("openai/openai_humaneval", "test")
    ),
    "metamath": NamedSet(
        read_turn("query", "response"),
        {"train": "metamath/MetaMathQA-395K.json"},
        _hub("meta-math/MetaMathQA", "train"),
    ),
    "commonsense_170k": NamedSet(
        _read_instruction,
        {"train": "commonsense/commonsense_170k.json"},
        _file(f"{LLM_ADAPTERS}ft-training_set/commonsense_170k.json", "train"),
    ),
    "codefeedback": NamedSet(
        read_turn("query", "answer"),
        {"train": "code/CodeFeedback-Filtered-Instruction.jsonl"},
        _hub("m-a-p/CodeFeedback-Filtered-Instruction", "train"),
    ),
    "codefeedback_first_block": NamedSet(
        _read_first_block,
        {"train": "code/CodeFeedback-Filtered-Instruction.jsonl"},
        _hub("m-a-p/CodeFeedback-Filtered-Instruction", "train"),
    ),
    "ultrafeedback": NamedSet(
        _read_chosen,
        {
            "train": "instruction/chat/ultrafeedback_binarized_train350.jsonl.gz",
            "test": "instruction/chat/ultrafeedback_binarized_test100.jsonl",
        },
        _hub("HuggingFaceH4/ultrafeedback_binarized", "train", "test", kind="_sft"),
    ),
    # Of LLaVA's second and first stage; their pictures have to be fetched from five places (docs/vision.md).
    "llava_mix665k": NamedSet(_read_any, {"train": "llava/llava_v1_5_mix665k.json"}, {}),
    "llava_pretrain": NamedSet(_read_any, {"train": "llava/blip_laion_cc_sbu_558k.json"}, {}),
    "code_alpaca": NamedSet(
        _read_instruction, {"train": "instruction/code_alpaca_2k.json"}, _hub("sahil2801/CodeAlpaca-20k", "train")
    ),
    "alpaca_eval_1": NamedSet(
        _read_alpaca_eval,
        {"test": "instruction/alpaca_eval_text_davinci_003.jsonl"},
        _file(f"{ALPACA_EVAL}results/text_davinci_003/model_outputs.json", "test"),
    ),
    "alpaca_eval_2": NamedSet(
        _read_alpaca_eval,
        {"test": "instruction/alpaca_eval/gpt4_1106_preview_outputs.json.gz"},
        _file(f"{ALPACA_EVAL}results/gpt4_1106_preview/model_outputs.json", "test"),
    ),
    "ifeval": NamedSet(
        read_ifeval,
        {"test": "instruction/ifeval/input_data.jsonl"},
        {"test": {"path": "google/IFEval", "split": "train"}},
    ),
    **{f"follow_{category}": _follow_bench(category) for category in FOLLOW_CATEGORIES},
    "mt_bench": NamedSet(
        read_mt_bench,
        {"test": "instruction/mt_bench/question.jsonl"},
        _file(f"{FASTCHAT}mt_bench/question.jsonl", "test"),
    ),
}
