"""The two ways to build the intact form, and plain LoRA, on the embedded model: exactness and step time.

(a) two ordinary LoRA adapters, both active: one trained, one frozen at (−B₀, A₀)
(b) one adapter with milora's `LoraVariant`

    python benchmarks/intact_form.py [--out benchmarks/results/intact_form.json]
"""

import argparse
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import milora
from milora.method.files import write_json
from milora.models.base import load_model
from milora.models.embedded import EMBEDDED
from milora.run.environment import describe_environment
from milora.run.sections import ModelSection

RANK = 16


def build_pair(base: torch.nn.Module, dropout: float) -> PeftModel:
    """Way (a), through PEFT's public API alone."""
    model = get_peft_model(base, _config(dropout))
    state = milora.get_milora_state_dict(model)
    model.add_adapter("initial", _config(dropout))
    with torch.no_grad():
        for name, module in model.named_modules():
            if f"{name}.lora_A.weight" in state:
                A, B = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
                for adapter, sign in (("default", 1), ("initial", -1)):
                    module.lora_A[adapter].weight.copy_(A)
                    module.lora_B[adapter].weight.copy_(sign * B)
    model.base_model.set_adapter(["default", "initial"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    return model


def build_variant(base: torch.nn.Module, dropout: float) -> PeftModel:
    """Way (b), what the package does."""
    model = get_peft_model(base, _config(dropout))
    milora.initialize_lora_milora_weights(model)
    return model


def build_lora(base: torch.nn.Module, dropout: float) -> PeftModel:
    return get_peft_model(base, _config(dropout))


WAYS = {"pair": build_pair, "variant": build_variant, "lora": build_lora}


def _config(dropout: float) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=dropout, target_modules="all-linear")


def _base(dtype: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return load_model(ModelSection(name=EMBEDDED, dtype=dtype))


def drift(way: str, dtype: str, dropout: float, after: str = "") -> float:
    """‖logits − base logits‖ / ‖base logits‖ at step 0, in training mode where there is dropout."""
    tokens = torch.arange(64).reshape(2, 32) * 97 % 5000
    base = _base(dtype).eval()
    with torch.no_grad():
        expected = base(tokens).logits.float()
        model = WAYS[way](base, dropout).train(dropout > 0)
        if after == "set_adapter":
            model.set_adapter("default")
        if after == "merge":
            model = model.merge_and_unload()
        found = model(tokens).logits.float()
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


def step_seconds(rounds: int, dtype: str) -> dict[str, list[float]]:
    """Seconds of forward, backward and AdamW on 4 × 96 tokens, the ways in alternation."""
    tokens = torch.arange(384).reshape(4, 96) * 97 % 5000
    models = {way: build(_base(dtype), 0.0).train() for way, build in WAYS.items()}
    optimizers = {
        way: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]) for way, model in models.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, model in models.items():
            started = time.perf_counter()
            model(tokens, labels=tokens).loss.backward()
            optimizers[way].step()
            optimizers[way].zero_grad()
            seconds[way].append(time.perf_counter() - started)
    return {way: times[1:] for way, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cases = [("float32", 0.0, ""), ("float32", 0.05, ""), ("bfloat16", 0.0, ""), ("bfloat16", 0.05, "")]
    cases += [("float32", 0.0, "set_adapter"), ("float32", 0.0, "merge"), ("bfloat16", 0.0, "merge")]
    drifts = [
        {"dtype": dtype, "dropout": dropout, "after": after}
        | {way: drift(way, dtype, dropout, after) for way in ("pair", "variant")}
        for dtype, dropout, after in cases
    ]
    ratios = {}
    for dtype in ("float32", "bfloat16"):
        times = step_seconds(arguments.rounds, dtype)
        ratios[dtype] = {
            way: statistics.median(a / b for a, b in zip(times[way], times["lora"], strict=True)) for way in WAYS
        }
    print(f"{'step 0, relative drift of the logits':<46}{'pair':>12}{'variant':>12}")
    for row in drifts:
        label = f"{row['dtype']}, dropout {row['dropout']}{', after ' + row['after'] if row['after'] else ''}"
        print(f"{label:<46}{row['pair']:>12.2g}{row['variant']:>12.2g}")
    for dtype, ratio in ratios.items():
        print(f"{'step time over LoRA of the same rank, ' + dtype:<46}{ratio['pair']:>12.2f}{ratio['variant']:>12.2f}")
    if arguments.out:
        environment = asdict(describe_environment()) | {"threads": torch.get_num_threads()}
        result = {**environment, "drift": drifts, "step_time_over_lora": ratios}
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
