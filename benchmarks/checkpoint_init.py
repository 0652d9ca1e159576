"""Peak memory and time of `milora init` on a synthetic sharded checkpoint, against loading it and full SVDs.

    python benchmarks/checkpoint_init.py [--layers 14] [--folder DIR]
        [--out benchmarks/results/checkpoint-init-cpu.json]

The checkpoint has LLaMA-2-7B's shapes (4096, 11008), fewer layers, Gaussian weights in bf16 and shards of 2 GB at most.
It is written a shard at a time and deleted afterwards; --folder needs twice its size.

Peak memory is the kernel's high-water mark VmHWM of the command's own process, pages mapped from files included. The
marks are 2.5 GB, and 4 times the largest matrix in float64 plus 1 GB, of which the imports take more than half. Time is
set against what the official procedure would take: loading the model with transformers (its weights are mapped; each is
touched once), and torch.linalg.svd in float32 of one matrix of each shape, times their number.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from initialization import clock
from safetensors.torch import save_file
from transformers import LlamaConfig

from milora.method.files import write_json
from milora.run.environment import describe_environment

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 11008, 32000
TARGETS = {"q_proj": (HIDDEN, HIDDEN), "down_proj": (HIDDEN, INTERMEDIATE)}
RANK = 64
SHARD = 2e9  # bytes
MARK = 2.5e9
CONSTANT = 1e9
LOAD = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
print(sum(parameter.detach().sum() for parameter in model.parameters()))
"""


def list_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    attention = {f"self_attn.{kind}_proj": (HIDDEN, HIDDEN) for kind in "qkvo"}
    mlp = {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
    norms = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    layer = {**attention, **mlp, "mlp.down_proj": (HIDDEN, INTERMEDIATE), **norms}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write config, index and shards; return the bytes of the shards."""
    LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in list_shapes(layers).items():
        size = 2 * torch.Size(shape).numel()
        if filled + size > SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    generator = torch.Generator().manual_seed(0)
    weight_map, total = {}, 0
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
        total += (folder / file).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def watch(*command: str) -> dict[str, float]:
    """Run a command on one thread: its seconds, and its peak memory in bytes; see above."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak = 0
    # Not getrusage: what it says of a child begins with the parent's own size.
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak * 1024}


def measure(folder: Path, layers: int) -> dict[str, Any]:
    model = folder / "model"
    model.mkdir()
    size = write_checkpoint(model, layers)
    largest = 8 * HIDDEN * INTERMEDIATE
    report: dict[str, Any] = {
        "layers": layers,
        "checkpoint_bytes": size,
        "largest_float64_bytes": largest,
        "rank": RANK,
    }
    report["targets"] = {name: {"shape": shape, "count": layers} for name, shape in TARGETS.items()}
    report["imports"] = watch(sys.executable, "-c", "import milora.models.methods")
    for form in ("intact", "residual"):
        options = ("--rank", str(RANK), "--targets", ",".join(TARGETS), "--form", form, "--jobs", "1")
        found = watch(sys.executable, "-m", "milora", "init", str(model), *options, "-o", str(folder / form))
        report[form] = found | {
            "peak_over_checkpoint": found["peak_bytes"] / size,
            "peak_over_largest_float64": found["peak_bytes"] / largest,
            "within_marks": found["peak_bytes"] < min(MARK, 4 * largest + CONSTANT),
        }
        print(
            f"{form:<9} {found['seconds']:7.1f} s  peak {found['peak_bytes'] / 1e9:.2f} GB of {size / 1e9:.2f} GB: "
            f"{found['peak_bytes'] / size:.2f}; {MARK / 1e9:g} GB and 4 × {largest / 1e9:.2f} + {CONSTANT / 1e9:g} GB "
            f"{'kept' if report[form]['within_marks'] else 'BROKEN'}",
            flush=True,
        )
    report["loading"] = watch(sys.executable, "-c", LOAD, str(model))
    svd = {}
    for name, shape in TARGETS.items():
        weight = torch.empty(shape).normal_(std=0.02, generator=torch.Generator().manual_seed(0))
        svd[name], _ = clock(lambda weight=weight: torch.linalg.svd(weight, full_matrices=False))
    official = report["loading"]["seconds"] + layers * sum(svd.values())
    report |= {"svd_seconds": svd, "official_seconds": official}
    report |= {f"official_over_{form}": official / report[form]["seconds"] for form in ("intact", "residual")}
    print(
        f"loading   {report['loading']['seconds']:7.1f} s  peak {report['loading']['peak_bytes'] / 1e9:.2f} GB\n"
        f"official  {official:7.1f} s  = loading + {layers} × ({' + '.join(f'{each:.1f}' for each in svd.values())}): "
        f"{report['official_over_intact']:.1f} and {report['official_over_residual']:.1f} times as long"
    )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {**asdict(describe_environment()), "threads": 1}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoint-init-") as folder:
        report |= measure(Path(folder), options.layers)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, report)


if __name__ == "__main__":
    main()
