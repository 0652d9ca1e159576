"""Time and accuracy of `decompose_weight` against the full SVD and PEFT's initializations, in alternation in one run.

    python benchmarks/initialization.py [--quick] [--model DIR] [--out benchmarks/results/initialization-cpu.json]
    python benchmarks/initialization.py --llama2-7b
    python benchmarks/initialization.py --gram [--shapes 4096x4096 11008x4096]

Each rank is measured against `torch.linalg.svd` in float32, which PEFT's `pissa` and `mica` call, and against the
`torch.svd_lowrank` of its `pissa_niter_16`. At one rank, an adapter is initialized by PEFT's three methods and by ours.
`--gram` measures what unsloth (2026.10) describes for minor left vectors, an eigendecomposition of the smaller Gram
matrix in float64, written anew from that description.
Energy is ‖W V‖² of the band: its error is the relative excess (minor) or lack (principal) against the float64 spectrum.
Residuals are relative to σ_max, as in the certificate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor

from milora.method.decomposition import Factors, decompose_weight
from milora.method.files import write_json
from milora.method.initialization import initialize_lora_milora_weights
from milora.method.solver.certificate import Band, certify
from milora.run.environment import describe_environment

SHAPES = ["576x576", "576x1536", "1536x576", "2048x2048", "4096x4096", "11008x4096", "4096x11008"]
LLAMA_LAYERS = 32
LLAMA_LAYER = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "up": (11008, 4096), "down": (4096, 11008)}


def bulk_weight(out: int, into: int, seed: int = 0, outliers: int = 32) -> Tensor:
    """Marchenko–Pastur bulk (a Gaussian) and outliers from 10 down to 1.3 times its edge, rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    W = 0.02 * torch.randn(out, into, generator=generator)
    left, right = (torch.linalg.qr(torch.randn(side, outliers, generator=generator)).Q for side in (out, into))
    edge = 0.02 * (out**0.5 + into**0.5)
    weight: Tensor = (W + (left * (edge * torch.logspace(1, 0.1, outliers))) @ right.T).bfloat16().float()
    return weight


def decaying_weight(out: int, into: int, seed: int = 0) -> Tensor:
    """Singular values that fall like an attention weight's, exponentially and to near zero, rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    k = min(out, into)
    left, right = (torch.linalg.qr(torch.randn(side, k, generator=generator)).Q for side in (out, into))
    share = torch.arange(k) / k
    weight: Tensor = ((left * (10 * torch.exp(-4 * share) * (1 - share).sqrt())) @ right.T).bfloat16().float()
    return weight


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `call` takes, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def alternate(calls: dict[str, Callable[[], Any]], repetitions: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and last result of each call, all of them once in each round; small ones warm up first."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    for round_ in range(repetitions + (repetitions > 3)):
        for name, call in calls.items():
            elapsed, results[name] = clock(call)
            if round_ or repetitions <= 3:
                seconds[name].append(elapsed)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def float64_spectrum(W: Tensor) -> Tensor:
    tall = W if W.shape[0] >= W.shape[1] else W.T
    spectrum: Tensor = torch.linalg.svdvals(tall.double())
    return spectrum


def energy_error(W: Tensor, V: Tensor, wanted: Tensor) -> float:
    held = (W.double() @ torch.linalg.qr(V.double()).Q).square().sum()
    optimum = wanted.square().sum()
    return float((held / optimum - 1).abs())


def value_error(found: Tensor, wanted: Tensor) -> float:
    """The largest error of a singular value relative to itself."""
    return float(((found.double() - wanted).abs() / wanted).max())


def measure_shape(out: int, into: int, spectrum: str, ranks: list[int], repetitions: int) -> list[dict[str, Any]]:
    W = bulk_weight(out, into) if spectrum == "bulk" else decaying_weight(out, into)
    k = min(out, into)
    truth = float64_spectrum(W)
    ranks = [rank for rank in [*ranks, k // 2] if rank <= k // 2]
    calls: dict[str, Callable[[], Any]] = {"svd": partial(torch.linalg.svd, W, full_matrices=False)}
    if out < into:
        calls["svd of the transpose"] = partial(torch.linalg.svd, W.T.contiguous(), full_matrices=False)
    for rank in ranks:
        calls[f"minor {rank}"] = partial(decompose_weight, W, rank)
    for rank in ranks[:-1]:
        calls[f"principal {rank}"] = partial(decompose_weight, W, rank, components="principal")
        calls[f"lowrank {rank}"] = partial(torch.svd_lowrank, W, rank, niter=16)
    seconds, results = alternate(calls, repetitions)

    U, S, Vh = results.pop("svd")
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        if not isinstance(result, Factors):
            continue
        components, rank = name.split()[0], int(name.split()[1])
        band = slice(k - rank, k) if components == "minor" else slice(0, rank)
        of_svd = certify(W, Band(U[:, band], S[band], Vh[band].T, S[0].item(), None), "exact")
        row = {
            "shape": f"{out}x{into}",
            "spectrum": spectrum,
            "components": components,
            "rank": rank,
            "repetitions": repetitions,
            "seconds": seconds[name],
            "svd_seconds": seconds["svd"],
            "ratio": seconds["svd"] / seconds[name],
            **certificate_of(result),
            "energy_error": energy_error(W, result.A.T, truth[band]),
            "value_error": value_error(result.singular_values, truth[band]),
            "svd_residual": of_svd.residual,
            "svd_energy_error": energy_error(W, Vh[band].T, truth[band]),
            "svd_value_error": value_error(S[band], truth[band]),
        }
        if out < into:
            row["ratio_to_svd_of_the_transpose"] = seconds["svd of the transpose"] / seconds[name]
        if components == "principal":
            row["lowrank_seconds"] = seconds[f"lowrank {rank}"]
            row["lowrank_energy_error"] = energy_error(W, results[f"lowrank {rank}"][2], truth[band])
        rows.append(row)
        print_row(row)
    return rows


def measure_peft(out: int, into: int, rank: int, repetitions: int) -> dict[str, Any]:
    """Seconds from a weight to an initialized PEFT adapter, by PEFT's methods and by ours."""
    W = bulk_weight(out, into)

    def adapt(initialization: bool | str) -> PeftModel:
        linear = torch.nn.Linear(into, out, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(W.clone())
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=initialization)
        return get_peft_model(torch.nn.Sequential(linear), config)

    calls: dict[str, Callable[[], Any]] = {name: partial(adapt, name) for name in ("pissa", "pissa_niter_16", "mica")}
    calls["milora"] = lambda: initialize_lora_milora_weights(adapt(True))
    seconds, _ = alternate(calls, repetitions)
    beside = (f"{name} {elapsed:.3f} s ({elapsed / seconds['milora']:.2f}x)" for name, elapsed in seconds.items())
    print(f"{out}x{into} bulk, an adapter of r={rank}: {', '.join(beside)}", flush=True)
    return {"shape": f"{out}x{into}", "spectrum": "bulk", "rank": rank, "repetitions": repetitions, "seconds": seconds}


def minor_of_gram(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Minor left vectors and their singular values, from all eigenvectors of the smaller Gram matrix in float64."""
    W64 = W.double()
    tall = W.shape[0] > W.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(W64.T @ W64 if tall else W64 @ W64.T)
    values = eigenvalues[:rank].clamp(min=0).sqrt()
    return (W64 @ vectors[:, :rank] / values if tall else vectors[:, :rank]), values


def measure_gram(out: int, into: int, rank: int, repetitions: int) -> dict[str, Any]:
    """Seconds for the minor components of a weight, by the eigenvectors of its Gram matrix and by ours."""
    W = bulk_weight(out, into)
    truth = float64_spectrum(W)[-rank:]
    calls: dict[str, Callable[[], Any]] = {
        "gram": partial(minor_of_gram, W, rank),
        "milora": partial(decompose_weight, W, rank),
    }
    seconds, results = alternate(calls, repetitions)
    row = {
        "shape": f"{out}x{into}",
        "spectrum": "bulk",
        "rank": rank,
        "repetitions": repetitions,
        "seconds": seconds["milora"],
        "gram_seconds": seconds["gram"],
        "ratio": seconds["gram"] / seconds["milora"],
        **certificate_of(results["milora"]),
        "energy_error": energy_error(W, results["milora"].A.T, truth),
        "gram_energy_error": energy_error(W.T, results["gram"][0], truth),
    }
    print(
        f"{row['shape']:>10} r={rank}: ours {row['seconds']:.2f} s, Gram matrix {row['gram_seconds']:.2f} s "
        f"({row['ratio']:.1f}x); energy {row['energy_error']:.0e} and {row['gram_energy_error']:.0e}",
        flush=True,
    )
    return row


def certificate_of(factors: Factors) -> dict[str, Any]:
    found = factors.certificate
    assert found is not None
    return {
        "method": found.method,
        "residual": found.residual,
        "relative_residual": found.relative_residual,
        "orthonormality": found.orthonormality,
        "fallback": found.fallback,
    }


def print_row(row: dict[str, Any]) -> None:
    beside = (
        f"  transpose {row['ratio_to_svd_of_the_transpose']:5.1f}x" if "ratio_to_svd_of_the_transpose" in row else ""
    )
    if "lowrank_seconds" in row:
        beside += f"  niter_16 {row['lowrank_seconds']:.3f} s, energy {row['lowrank_energy_error']:.0e}"
    print(
        f"{row['shape']:>10} {row['spectrum']:>8} {row['components']:>9} r={row['rank']:<5}"
        f"{row['seconds']:8.3f} s  svd {row['svd_seconds']:8.3f} s {row['ratio']:6.2f}x  {row['method']:<8}"
        f"residual {row['residual']:.0e} (svd {row['svd_residual']:.0e})  energy {row['energy_error']:.0e} "
        f"(svd {row['svd_energy_error']:.0e})  values {row['value_error']:.0e} (svd {row['svd_value_error']:.0e})"
        f"{beside}{'  FELL BACK: ' + row['fallback'] if row['fallback'] else ''}",
        flush=True,
    )


def measure_model(folder: Path, ranks: list[int], every: int) -> list[dict[str, Any]]:
    """Every `every`-th linear weight of a checkpoint in safetensors: the sum of times, and the worst accuracy."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith("proj.weight")]  # noqa: SIM118
            weights.update({name: tensors.get_tensor(name).float() for name in names})
    names = sorted(weights)[::every]
    totals: dict[str, dict[str, list[float]]] = {}
    worst: dict[str, float] = {}
    fell_back = 0
    for name in names:
        W = weights[name]
        calls: dict[str, Callable[[], Any]] = {"svd": partial(torch.linalg.svd, W, full_matrices=False)}
        for rank in ranks:
            calls[f"minor {rank}"] = partial(decompose_weight, W, rank)
            calls[f"principal {rank}"] = partial(decompose_weight, W, rank, components="principal")
            calls[f"niter_16 {rank}"] = partial(torch.svd_lowrank, W, rank, niter=16)
        seconds, results = alternate(calls, 1)
        truth = float64_spectrum(W)
        kind = "x".join(map(str, W.shape))
        for call, elapsed in seconds.items():
            totals.setdefault(kind, {}).setdefault(call, []).append(elapsed)
        for call, result in results.items():
            if call == "svd":
                continue
            rank = int(call.split()[1])
            V = result.A.T if isinstance(result, Factors) else result[2]
            band = truth[-rank:] if call.startswith("minor") else truth[:rank]
            worst[call] = max(worst.get(call, 0.0), energy_error(W, V, band))
            fell_back += isinstance(result, Factors) and bool(certificate_of(result)["fallback"])
    rows: list[dict[str, Any]] = []
    totals["all"] = {call: [t for kind in totals.values() for t in kind[call]] for call in totals[next(iter(totals))]}
    for kind, times in totals.items():
        for call in times:
            row: dict[str, Any] = {
                "model": folder.name,
                "shape": kind,
                "call": call,
                "matrices": len(times[call]),
                "seconds": sum(times[call]),
                "ratio": sum(times["svd"]) / sum(times[call]),
                "smallest_ratio": min(s / t for s, t in zip(times["svd"], times[call], strict=True)),
                "worst_energy_error": worst.get(call),
                "fell_back": fell_back,
            }
            rows.append(row)
            print(
                f"{kind:>10} {call:<13} {row['matrices']:4} matrices {row['seconds']:8.2f} s {row['ratio']:6.2f}x "
                f"(worst matrix {row['smallest_ratio']:.2f}x)  worst energy {row['worst_energy_error'] or 0:.0e}",
                flush=True,
            )
    print(f"{fell_back} results of ours fell back")
    return rows


def measure_llama(rank: int) -> dict[str, Any]:
    """The 160 matrices q, k, v, up, down of LLaMA-2-7B, synthetic: whole on a GPU, one layer of 32 on a CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = LLAMA_LAYERS if device == "cuda" else 1
    seconds: dict[str, float] = dict.fromkeys(LLAMA_LAYER, 0.0)
    fell_back = 0
    for layer in range(layers):
        for name, (out, into) in LLAMA_LAYER.items():
            W = (decaying_weight if name in "qk" else bulk_weight)(out, into, seed=layer).to(device)
            elapsed, factors = clock(partial(decompose_weight, W, rank))
            seconds[name] += elapsed
            fell_back += bool(certificate_of(factors)["fallback"])
            print(f"layer {layer} {name:>4} {elapsed:7.2f} s  {factors.certificate}", flush=True)
    total = sum(seconds.values()) * LLAMA_LAYERS / layers
    print(
        f"LLaMA-2-7B, r={rank}, on {device}: {total:.0f} s in all{' (projected from one layer)' if layers == 1 else ''}"
    )
    return {
        "rank": rank,
        "device": device,
        "layers": layers,
        "seconds": seconds,
        "total": total,
        "fell_back": fell_back,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes, few repetitions")
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 16, 64, 128])
    parser.add_argument("--repetitions", type=int, help="of each measurement (default: 9, 3 or 1 by size)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint in safetensors to measure too")
    parser.add_argument("--llama2-7b", action="store_true", help="only the matrices of LLaMA-2-7B, synthetic")
    parser.add_argument("--gram", action="store_true", help="only the Gram matrix's eigenvectors beside ours, r=32")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        **asdict(describe_environment()),
        "threads": options.threads,
    }
    print(report)
    if options.llama2_7b:
        report["llama2_7b"] = measure_llama(rank=64)
    elif options.gram:
        shapes = [[int(side) for side in shape.split("x")] for shape in options.shapes]
        report["gram"] = [measure_gram(*shape, rank=32, repetitions=options.repetitions or 3) for shape in shapes]
    else:
        rows: list[dict[str, Any]] = []
        adapters: list[dict[str, Any]] = []
        for shape in options.shapes[:3] if options.quick else options.shapes:
            out, into = map(int, shape.split("x"))
            size = min(out, into)
            repetitions = options.repetitions or (3 if options.quick else 9 if size < 1024 else 3 if size < 4096 else 1)
            for spectrum in ("bulk", "decaying") if out == into else ("bulk",):
                rows += measure_shape(out, into, spectrum, options.ranks, repetitions)
            adapters.append(measure_peft(out, into, rank=64, repetitions=repetitions))
        report |= {"shapes": rows, "peft": adapters}
        if options.model:
            report["model"] = measure_model(options.model, [16, 64], every=10 if options.quick else 1)
        else:
            print("no --model DIR: real weights are skipped")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, report)


if __name__ == "__main__":
    main()
