"""Training time and peak memory per real token: ours, the authors' form, and TRL, on the same rows in one run.

    python benchmarks/training.py --data DIR [--rows gsm8k commonsense] [--batch 8 16] [--rank 16] [--rounds 3]

Contenders alternate, each in a process of its own on one thread. A process trains a LoRA of the embedded model on all
linear layers; its first step warms up and is not counted. Padding is not counted either: seconds are per 1000 tokens of
rows. `authors` is transformers' trainer with rows padded to the longest and dense logits, as the code behind the paper
trains; `lora` is PEFT's through our trainer; `trl` and `trl packed` are SFTTrainer without activation checkpointing,
which is its default and slower.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

LENGTH = 512
# Rows of each set: with the loss on the answer, as most train, and on all tokens, as the paper's commonsense runs.
SETS = {"gsm8k": ("alpaca", "answer"), "commonsense": ("commonsense", "all")}
PARTS = ["ARC-Easy", "ARC-Challenge", "boolq", "openbookqa"]  # of the eight sets of commonsense_170k
# Rows of the longest row's length in a pass: at most about the 1024 tokens of a pass of `trl packed`.
PASS = {"gsm8k": 4, "commonsense": 8}
OURS = ["milora", "lora", "milora padded"]
CONTENDERS = [*OURS, "authors", "trl", "trl packed"]


def load_rows(name: str, data: str, count: int) -> tuple[Any, Any, Any]:
    """Return token ids and labels of the first rows of a set, what tokenizing them did, and the tokenizer."""
    from milora.data.templates import resolve_template
    from milora.data.tokens import tokenize_rows
    from milora.data.training_rows import load_training_rows
    from milora.models.base import load_tokenizer
    from milora.models.embedded import EMBEDDED
    from milora.run.sections import DataSection, ModelSection

    template, loss_on = SETS[name]
    files = [f"{data}/commonsense/{part}/train.json" for part in PARTS]
    named = {"name": "gsm8k"} if name == "gsm8k" else {"sources": [{"name": file} for file in files]}
    tokenizer = load_tokenizer(ModelSection(name=EMBEDDED))
    section = DataSection(**named, data_dir=data, rows=count, validation_rows=0, template=template)
    rows, report = tokenize_rows(
        load_training_rows(section).train,
        resolve_template(template, lambda: tokenizer),
        tokenizer,
        max_length=LENGTH,
        loss_on=loss_on,
    )
    return rows, report, tokenizer


def make_trainer(
    contender: str, rows: Any, report: Any, tokenizer: Any, options: argparse.Namespace, folder: str
) -> Any:
    """Return the trainer of a contender, ready to train."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, set_seed
    from trl import SFTConfig, SFTTrainer

    import milora
    from milora.models.base import load_model
    from milora.models.embedded import EMBEDDED
    from milora.run.sections import ModelSection
    from milora.training.attention import choose_layout
    from milora.training.prepare import Preparation
    from milora.training.rows import Rows
    from milora.training.speed import Speed
    from milora.training.trainer import RecipeTrainer

    (name,), (batch,) = options.rows, options.batch
    set_seed(0)
    model = get_peft_model(
        load_model(ModelSection(name=EMBEDDED, dtype=options.dtype)),
        LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if contender.startswith("milora"):
        milora.initialize_lora_milora_weights(model)
    is_packed = contender == "trl packed"
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=max(1, batch // 8) if is_packed else batch,
        num_train_epochs=1,
        max_length=1024 if is_packed else None,
        packing=is_packed,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    common = {"model": model, "args": arguments, "train_dataset": rows, "processing_class": tokenizer}
    if contender == "authors":
        return Trainer(**common, data_collator=DataCollatorForSeq2Seq(tokenizer))
    if contender.startswith("trl"):
        return SFTTrainer(**common)
    layout = "padded" if contender == "milora padded" else choose_layout(model, LENGTH)
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    prepared = Preparation(model, trainable, total, tokenizer, Rows(rows, None, "plain", report, None), layout, None)
    speed = Speed(prepared, options.dtype)
    return RecipeTrainer(**common, layout=layout, micro_batch_size=PASS[name], loraplus_ratio=None, speed=speed)


def measure(contender: str, options: argparse.Namespace) -> dict[str, float]:
    """Train in this process; return seconds per 1000 real tokens of all steps but the first, and the peak in bytes."""
    from milora.run.allocator import keep_large_blocks

    if contender in OURS:
        keep_large_blocks()  # as the command line does
    rows, report, tokenizer = load_rows(options.rows[0], options.data, options.batch[0] * (options.steps + 1))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(contender, rows, report, tokenizer, options, folder)
        step, counted, clocks = trainer.training_step, 0, []

        def count(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            nonlocal counted
            clocks.append((time.process_time(), time.perf_counter()))
            if len(clocks) > 1:
                mask = inputs.get("attention_mask")
                counted += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return step(model, inputs, *rest)

        trainer.training_step = count
        trainer.train()
        end = time.process_time(), time.perf_counter()
    cpu, wall = (1000 * (last - first) / counted for last, first in zip(end, clocks[1], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"cpu": cpu, "wall": wall, "peak": peak, "tokens": counted}


def compare(name: str, batch: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the medians of each contender."""
    found: dict[str, list[dict[str, float]]] = {contender: [] for contender in options.contenders}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for _ in range(options.rounds):
        for contender in options.contenders:
            command = [sys.executable, __file__, "--one", contender, "--rows", name, "--batch", str(batch)]
            command += ["--data", options.data, "--steps", str(options.steps), "--dtype", options.dtype]
            command += ["--rank", str(options.rank)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{contender}: {done.stderr}")
            found[contender].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}, batch {batch}, {contender}: {found[contender][-1]}", file=sys.stderr)
    return {
        contender: {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        for contender, rounds in found.items()
    }


def print_table(title: str, medians: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n\n| | CPU s / 1000 tokens | wall | peak GB | times milora's CPU time |\n|---|---|---|---|---|")
    ours = medians[next(iter(medians))]["cpu"]
    for contender, each in medians.items():
        print(
            f"| {contender} | {each['cpu']:.2f} | {each['wall']:.2f} | {each['peak'] / 1e9:.2f} "
            f"| {each['cpu'] / ours:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder with gsm8k/ and commonsense/")
    parser.add_argument("--rows", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="the steps that are counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return

    from milora.method.files import write_json
    from milora.run.environment import describe_environment

    results = {
        f"{name}, batch {batch}": compare(name, batch, options) for name in options.rows for batch in options.batch
    }
    for title, medians in results.items():
        print_table(f"{title}, {options.dtype}", medians)
    if options.out:
        environment = asdict(describe_environment())
        content = {"environment": environment, "rank": options.rank, "dtype": options.dtype, "medians": results}
        write_json(options.out, content)


if __name__ == "__main__":
    main()
