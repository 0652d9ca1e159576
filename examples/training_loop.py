"""MiLoRA in a training loop of your own, on chat rows: a list of `messages` in each line of a file.

    python examples/training_loop.py MODEL ROWS.jsonl OUT [STEPS]

OUT is an ordinary LoRA for MODEL, which is not changed.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import milora

Messages = list[dict[str, str]]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[Tensor, Tensor]:
    """Return a conversation's token ids, and labels that train its last answer."""

    def tokens(part: Messages, *, prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)
        return tokenizer(text, add_special_tokens=False)["input_ids"][:1024]

    ids, question = tokens(messages, prompt=False), tokens(messages[:-1], prompt=True)
    return torch.tensor([ids]), torch.tensor([[-100] * len(question) + ids[len(question) :]])


def main(name: str, rows: str, out: str, steps: str = "100") -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    conversations = [json.loads(line)["messages"] for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    print(milora.initialize_lora_milora_weights(model))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=3e-4, weight_decay=0.0
    )  # decay would pull A and B to zero, not to the base
    model.train()
    for step in range(int(steps)):
        ids, labels = encode(tokenizer, conversations[step % len(conversations)])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.3f}")

    milora.save_milora_as_lora(out, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
