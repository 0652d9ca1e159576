"""Bands of singular components → the LoRA layers of a PeftModel, in place."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.model import LoraModel
from torch import Tensor

from milora.method.decomposition import Factors
from milora.method.errors import MiloraError
from milora.method.factors import Choice, check_same_factors, decompose_layers, decompose_together
from milora.method.layers import MARK, MARKS, check_base, ready_layers, tied_weights
from milora.method.options import Components, Form, Weighting
from milora.method.solver.certificate import Certificate
from milora.method.variant import attach_factors, read_weight

VANISHING = 1e-3  # of the largest singular value: below it B₀ and A₀ are too small to train from


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: its rank, the singular values its factors hold (first, last), the largest of its weight, the rounding
    error ‖round(W_p) − W_p‖/‖s·B₀A₀‖ of a residual weight (0 for intact), and the certificate of its decomposition."""

    rank: int
    band: tuple[float, float]
    largest: float
    rounding_error: float
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class InitializationReport:
    """What `initialize_lora_milora_weights` did, by layer name, the seconds it took, and what to worry about."""

    layers: dict[str, LayerReport]
    seconds: float
    warnings: list[str] = field(default_factory=list)


def initialize_lora_milora_weights(
    model: PeftModel,
    milora_state_dict: dict[str, Tensor] | None = None,
    *,
    adapter_name: str = "default",
    components: Components = "minor",
    form: Form = "intact",
    weighting: Weighting = "singular",
    seed: int = 0,
    jobs: int = 1,
    cache: Path | None = None,
) -> InitializationReport:
    """Start a LoRA adapter from singular components of its base weights, in place; the outputs do not change.

        form="intact":    y = W x + s·B A x − s·B₀ A₀ x      W stays as it is
        form="residual":  y = (W − s·B₀ A₀) x + s·B A x      W is replaced (paper, section 3)

    Where torch.distributed is initialised, every process must call this before an engine shards the model: the weights
    are shared out, and all processes end with the same factors.

    Args:
        model: what `get_peft_model(base, LoraConfig(…))` returned, before training.
        milora_state_dict: factors from `get_milora_state_dict`, instead of decomposing now.
        adapter_name: the adapter to start; rank and scaling are read from its layers, so rank patterns, alpha
            patterns and rsLoRA come for free.
        components, weighting, seed: see `decompose_weight`.
        form: which of the two forms.
        jobs, cache: see `decompose_layers`.

    Raises:
        MiloraError: the adapter cannot be started exactly (DoRA, a second initialisation, an unsupported layer, a
            rank above min(W.shape), a weight with NaN, a tied or quantised weight in residual form …). The model is
            then unchanged.
    """
    started = time.perf_counter()
    layers = ready_layers(model, adapter_name, form)
    if milora_state_dict is None:
        choice = Choice(components, weighting, seed)
        factors = decompose_together(
            layers,
            lambda share: dict(decompose_layers(share, adapter_name, choice, _reader(share), jobs=jobs, cache=cache)),
        )
    else:
        factors = {name: _factors_from(milora_state_dict, name, layer, adapter_name) for name, layer in layers.items()}
        for name, layer in layers.items():
            check_base(name, layer, factors[name].A, factors[name].B)
        check_same_factors(factors)

    pairs = {name: (found.A, found.B) for name, found in factors.items()}
    rounding_errors = start_layers(model, adapter_name, layers, pairs, form)
    reports = {name: report_layer(found, rounding_errors[name]) for name, found in factors.items()}
    return InitializationReport(reports, time.perf_counter() - started, find_warnings(reports, weighting))


def get_milora_state_dict(
    model: PeftModel,
    *,
    adapter_name: str = "default",
    components: Components = "minor",
    weighting: Weighting = "singular",
    seed: int = 0,
    jobs: int = 1,
    cache: Path | None = None,
) -> dict[str, Tensor]:
    """Decompose the base weights of an adapter's layers and change nothing.

    Returns `{layer}.lora_A.weight` `(r, in)`, `{layer}.lora_B.weight` `(out, r)` and `{layer}.singular_values`
    `(r + 1,)`, the band's and then the weight's largest, on the CPU; see `initialize_lora_milora_weights` for the
    arguments and errors.
    """
    layers = ready_layers(model, adapter_name, "intact")
    state: dict[str, Tensor] = {}
    choice = Choice(components, weighting, seed)
    for name, factors in decompose_layers(layers, adapter_name, choice, _reader(layers), jobs=jobs, cache=cache):
        values = torch.cat([factors.singular_values, factors.singular_values.new_tensor([factors.largest])])
        state |= {f"{name}.lora_A.weight": factors.A, f"{name}.lora_B.weight": factors.B, f"{name}.{_VALUES}": values}
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


_VALUES = "singular_values"


def _reader(layers: dict[str, LoraLinear]) -> Callable[[str], Tensor]:
    return lambda name: read_weight(layers[name])


def report_layer(factors: Factors, rounding_error: float = 0.0) -> LayerReport:
    """Return what there is to say of a layer that starts from these factors."""
    values = factors.singular_values
    band = values[0].item(), values[-1].item()
    return LayerReport(len(values), band, factors.largest, rounding_error, factors.certificate)


def start_layers(
    model: PeftModel,
    adapter_name: str,
    layers: dict[str, LoraLinear],
    factors: dict[str, tuple[Tensor, Tensor]],
    form: Form,
    mark: str = MARK,
) -> dict[str, float]:
    """Attach (A₀, B₀) to each layer and mark the adapter; return the rounding errors of residual weights."""
    tied = tied_weights(model)
    rounding_errors = {
        name: attach_factors(
            layer, adapter_name, *factors[name], form=form, tied=id(layer.get_base_layer().weight) in tied
        )
        for name, layer in layers.items()
    }
    # The saved config says that the adapter needs its initial factors.
    model.peft_config[adapter_name].init_lora_weights = mark
    # PEFT has no hook there, and reads lora_A and lora_B directly. A partial, since deepcopy follows its arguments.
    model.base_model.add_weighted_adapter = partial(_combine_ordinary, model)
    return rounding_errors


def _combine_ordinary(model: PeftModel, adapters: list[str], *args: Any, **kwargs: Any) -> None:
    for name in adapters:
        if name in model.peft_config and model.peft_config[name].init_lora_weights in MARKS:
            raise MiloraError(
                f"add_weighted_adapter would combine s·BA of adapter {name!r} without its −s·B₀A₀",
                "save it with save_milora_as_lora, load that as an ordinary adapter and combine that",
            )
    LoraModel.add_weighted_adapter(model.base_model, adapters, *args, **kwargs)


def _factors_from(state: dict[str, Tensor], name: str, layer: LoraLinear, adapter_name: str) -> Factors:
    try:
        A, B, values = (state[f"{name}.{key}"] for key in ("lora_A.weight", "lora_B.weight", _VALUES))
    except KeyError as error:
        raise MiloraError(f"milora_state_dict has no {error}", "make it with get_milora_state_dict") from error
    if A.shape[0] != layer.lora_A[adapter_name].weight.shape[0]:
        raise MiloraError(
            f"{name}: milora_state_dict has rank {A.shape[0]}, the adapter {layer.r[adapter_name]}",
            "make both with the same LoraConfig",
        )
    return Factors(B, A, values[:-1], values[-1].item())


def find_warnings(reports: dict[str, LayerReport], weighting: Weighting) -> list[str]:
    """Return, as sentences, what to worry about in a start."""
    vanishing = [name for name, layer in reports.items() if layer.band[0] < VANISHING * layer.largest]
    if not vanishing or weighting == "orthonormal":
        return []
    return [
        f"{len(vanishing)} of {len(reports)} layers start from singular values below {VANISHING:g} of the largest "
        f'({vanishing[0]} …): factors near zero hardly train; weighting="orthonormal" keeps them at length one'
    ]
