"""Training speed and memory on one GPU: MiLoRA and LoRA through ours, LoRA through TRL, on the shapes of known models.

    python benchmarks/training_gpu.py [--models llama3-8b llama2-7b] [--ranks 16 64] [--liger]
        [--out FILE] [--profile FILE]

The weights are random, as are the tokens: neither changes the time of a product. Documents have 64 to 2048 tokens, all
of them trained, and a pass has at most 4096 of them. The adapter is on all linear layers, in float32 over a bfloat16
base, without activation checkpointing. Padding is not counted: tokens are those of documents. `trl packed` is
SFTTrainer with its own packing to 4096 tokens, `trl padded` the same trainer with two documents a pass.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

import milora
from milora.method.files import write_json
from milora.models.kernels import use_liger
from milora.run.environment import describe_environment
from milora.run.records import TokenReport
from milora.training.attention import choose_layout
from milora.training.prepare import Preparation
from milora.training.rows import Rows
from milora.training.speed import Speed
from milora.training.trainer import RecipeTrainer

PASS = 4096  # tokens
LONGEST = 2048
STEP = 64  # documents: seven or eight passes
SHAPES: dict[str, dict[str, Any]] = {
    "llama2-7b": {"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000},
    "llama3-8b": {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 5e5},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 1000},
}
LARGE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": PASS}
CONTENDERS = ["lora", "milora", "trl packed", "trl padded"]


def make_model(name: str) -> LlamaForCausalLM:
    """Return a model of these shapes with random weights, in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**LARGE, **SHAPES[name]}, tie_word_embeddings=False)
    with torch.device(torch.accelerator.current_accelerator() or "cpu"):
        model: LlamaForCausalLM = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


def make_rows(vocabulary: int, steps: int) -> Dataset:
    """Return documents whose lengths are uniform in their logarithm: 485 tokens in the mean."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(STEP * steps, generator=generator) * 5 + 6
    lengths = (2**exponents).int().clamp(max=LONGEST).tolist()
    documents = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": documents, "labels": documents})


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = {"<s>": 0, "</s>": 1, "<pad>": 2} | {f"w{index}": index for index in range(3, vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")), eos_token="</s>", pad_token="<pad>"
    )


def make_trainer(contender: str, model: Any, rows: Dataset, tokenizer: Any, folder: str) -> Any:
    ours = not contender.startswith("trl")
    is_packed = contender == "trl packed"
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=STEP if ours else (1 if is_packed else PASS // LONGEST),
        gradient_accumulation_steps=1 if ours else (8 if is_packed else 32),
        num_train_epochs=1,
        max_length=PASS if is_packed else None,
        packing=is_packed,
        gradient_checkpointing=False,
        bf16=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        # Without an accelerator, the tiny model can still be run, to try the script.
        use_cpu=not torch.accelerator.is_available(),
        include_num_input_tokens_seen="non_padding" if ours else "no",
    )
    common = {"model": model, "args": arguments, "train_dataset": rows, "processing_class": tokenizer}
    if not ours:
        return SFTTrainer(**common)
    layout = choose_layout(model, LONGEST)
    report = TokenReport(0, 0, 0, 0, 0, LONGEST)
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    prepared = Preparation(model, trainable, total, tokenizer, Rows(rows, None, "plain", report, None), layout, None)
    speed = Speed(prepared, "bfloat16")
    common["data_collator"] = DataCollatorForSeq2Seq(tokenizer)
    return RecipeTrainer(**common, layout=layout, micro_batch_size=PASS // LONGEST, loraplus_ratio=None, speed=speed)


def measure(contender: str, base: Any, rank: int, steps: int, profile: Path | None) -> dict[str, Any]:
    """Train, and return what was measured after the first passes; the model is as before afterwards."""
    vocabulary = base.config.vocab_size
    base.set_attn_implementation("sdpa")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    found: dict[str, Any] = {}
    if contender == "milora":
        started = time.perf_counter()
        report = milora.initialize_lora_milora_weights(model)
        found["initialization seconds"] = time.perf_counter() - started
        found["fell back"] = sum(layer.certificate.fell_back for layer in report.layers.values() if layer.certificate)
    _reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(contender, model, make_rows(vocabulary, steps + 1), make_tokenizer(vocabulary), folder)
        step, counted, marks = trainer.training_step, 0, []
        warm = 1 if isinstance(trainer, RecipeTrainer) else trainer.args.gradient_accumulation_steps

        def count(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            nonlocal counted
            _synchronize()
            marks.append(time.perf_counter())
            if len(marks) > warm:
                mask = inputs.get("attention_mask")
                counted += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return step(model, inputs, *rest)

        trainer.training_step = count
        trainer.train()
        _synchronize()
        seconds = time.perf_counter() - marks[warm]
        found |= {"tokens per second": counted / seconds, "tokens": counted, "loss": trainer.state.log_history[-1]}
        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        found["layout"] = getattr(trainer, "layout", None)
        if isinstance(trainer, RecipeTrainer):
            peak = trainer.speed.peak
            found["MFU"] = counted / seconds * trainer.speed.operations / peak if peak else None
        if profile and contender == "milora":
            _profile(trainer, profile)
    model.unload()
    return found


def _profile(trainer: RecipeTrainer, file: Path) -> None:
    """Write the kernels that took most of the time of one step."""
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.profiler.profile() as found:
        trainer.training_step(trainer.model, batch)
        _synchronize()
    file.write_text(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70))


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["llama3-8b", "llama2-7b"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--liger", action="store_true", help="with Liger's kernels, for every contender")
    parser.add_argument("--steps", type=int, default=3, help="the steps that are counted")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", type=Path, help="where the kernels of one step of MiLoRA are written")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in options.models:
        base = make_model(name)
        if options.liger:
            use_liger(base)
        for rank in options.ranks:
            found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in options.contenders}
            for contender in options.contenders * options.rounds:
                found[contender].append(measure(contender, base, rank, options.steps, options.profile))
                print(f"{name}, r = {rank}, {contender}: {json.dumps(found[contender][-1])}", flush=True)
                results[f"{name}, r = {rank}"] = {each: _median(rounds) for each, rounds in found.items() if rounds}
                if options.out:  # after each: the time on a machine may end
                    write_json(
                        options.out,
                        {"environment": asdict(describe_environment()), "liger": options.liger, "medians": results},
                    )
        del base


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {name for name, value in rounds[0].items() if isinstance(value, float)}
    return rounds[0] | {name: statistics.median(one[name] for one in rounds) for name in numbers}


if __name__ == "__main__":
    main()
