"""MiLoRA with TRL's SFTTrainer, on chat rows: a list of `messages` in each line of a file.

    python examples/trl_sft.py MODEL ROWS.jsonl OUT [STEPS]

OUT is an ordinary LoRA for MODEL, which is not changed.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

import milora


def main(name: str, rows: str, out: str, steps: str = "100") -> None:
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    # Before the trainer is built, and without a peft_config: also when a run is resumed.
    print(milora.initialize_lora_milora_weights(model))

    arguments = SFTConfig(
        f"{out}-checkpoints",
        max_steps=int(steps),
        learning_rate=3e-4,
        per_device_train_batch_size=4,
        max_length=1024,
        bf16=torch.cuda.is_available(),  # what is trained remains in float32
        logging_steps=1,
        report_to="none",
    )
    conversations = load_dataset("json", data_files=rows, split="train")
    SFTTrainer(model, args=arguments, train_dataset=conversations).train()

    milora.save_milora_as_lora(out, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
