"""The prompts of training and, where the official evaluation differs, of that."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with `{question}` in it, after which the answer follows, and then the end-of-text token."""

    template: str
    answer_prefix: str  # between the prompt's last character and the answer

    def render(self, question: str) -> str:
        return self.template.replace("{question}", question)

    def encode(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        """Token ids of the prompt, with the special tokens that the tokenizer puts in front."""
        ids: list[int] = tokenizer(self.render(question))["input_ids"]
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids

    def encode_answer(self, tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
        """Token ids of the answer and EOS.

        Apart from the prompt's, so that no token straddles the boundary: every answer token is trained, and the
        prompt's tokens are those of evaluation.
        """
        ids: list[int] = tokenizer(self.answer_prefix + answer, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]


PROMPTS = {
    "plain": Prompt("Question: {question}\nAnswer:", " "),
    # LLM-Adapters and the paper's mathematics: no trailing space, the answer follows at once.
    "alpaca": Prompt(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{question}\n\n### Response:",
        "",
    ),
    # LLM-Adapters' commonsense training prompt, with its two trailing spaces and its 16 of indent.
    "commonsense": Prompt(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  "
        "\n\n                ### Instruction:\n                {question}\n                \n"
        "                ### Response:\n                ",
        "",
    ),
}

EVALUATION_PROMPTS = {
    # The authors' inference/gsm8k_inference.py and MATH_inference.py.
    "mathematics": Prompt(PROMPTS["alpaca"].template + " Let's think step by step.", ""),
    # LLM-Adapters' commonsense_evaluate.py: a space less in the first line than in training, none in the blank one.
    "commonsense": Prompt(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
        "\n\n                ### Instruction:\n                {question}\n\n"
        "                ### Response:\n                ",
        "",
    ),
    "code": PROMPTS["alpaca"],
    "arithmetic": PROMPTS["plain"],
}
