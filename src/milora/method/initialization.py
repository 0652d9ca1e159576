"""Initializes the LoRA layers of a PeftModel in place from bands of singular components."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, LoraModel, ParamWrapper
from torch import Tensor

from milora.method.coverage import measure_coverage
from milora.method.decomposition import Factors
from milora.method.errors import MiloraError, MiloraWarning
from milora.method.factors import Choice, Stack, check_same_factors, decompose_layers, decompose_together, flatten_stack
from milora.method.layers import ready_layers, tied_weights
from milora.method.options import Components, Form, Unsupported, Weighting
from milora.method.origin import check_origins, describe_bases
from milora.method.solver.certificate import Certificate
from milora.method.unsupported import leave_ordinary
from milora.method.variant.config import MiloraConfig, lora_config, make_milora_config
from milora.method.variant.experts import attach_experts
from milora.method.variant.linear import attach_factors
from milora.method.variant.residual import attach_residual
from milora.method.variant.weights import (
    base_weight,
    count_matrices,
    decode_description,
    encode_description,
    matrix_names,
    read_weight,
    stack_factors,
    trained_factors,
)

VANISHING = 1e-3  # relative to the largest singular value: below it, B₀ and A₀ are too small to train


@dataclass(frozen=True, slots=True)
class LayerReport:
    """How one layer, or one expert of a layer, was initialized.

    Attributes:
        rank: r.
        band: the first and the last singular value in the factors.
        largest: the largest singular value of the weight.
        rounding_error: ‖round(W_p) − W_p‖/‖s·B₀A₀‖ of a residual weight; 0 for intact.
        certificate: see `Factors`.
    """

    rank: int
    band: tuple[float, float]
    largest: float
    rounding_error: float
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, repr=False)
class InitializationReport:
    """How `initialize_lora_milora_weights` initialized an adapter.

    Attributes:
        layers: each layer by name, and each expert of a mixture.
        seconds: how long it took.
        warnings: sentences.
        share: the share of the model's weights that the adapter is on, embeddings aside.
    """

    layers: dict[str, LayerReport]
    seconds: float
    warnings: list[str] = field(default_factory=list)
    share: float = 1.0

    def __repr__(self) -> str:
        ranks = sorted({layer.rank for layer in self.layers.values()})
        said = f"{len(self.layers)} layers of rank {', '.join(map(str, ranks))} in {self.seconds:.1f} s"
        return "\n".join([f"InitializationReport: {said}", *(f"  warning: {warning}" for warning in self.warnings)])


def initialize_lora_milora_weights(
    model: PeftModel,
    milora_state_dict: dict[str, Tensor] | None = None,
    *,
    adapter_name: str = "default",
    components: Components = "minor",
    form: Form = "intact",
    weighting: Weighting = "singular",
    unsupported: Unsupported = "error",
    seed: int = 0,
    jobs: int = 1,
    cache: str | Path | None = None,
) -> InitializationReport:
    """Initialize a LoRA adapter from singular components of its base weights, in place; the outputs do not change.

        form="intact":    y = W x + s·B A x − s·B₀ A₀ x      W is unchanged
        form="residual":  y = (W − s·B₀ A₀) x + s·B A x      W is replaced (paper, section 3)

    If torch.distributed is initialized, every process must call this before an engine shards the model. The
    decomposition is sharded across processes, and all processes get the same factors.

    Args:
        model: what `get_peft_model(base, LoraConfig(…))` returned, before training.
        milora_state_dict: factors from `get_milora_state_dict`, used instead of decomposing.
        adapter_name: the adapter to initialize. Rank and scaling are read from its layers, so that rank patterns, alpha
            patterns and rsLoRA are supported.
        components: the band of singular components to start from, see `decompose_weight`.
        form: one of the two forms.
        weighting: whether the singular values are part of the factors, see `decompose_weight`.
        unsupported: what becomes of layers that cannot be initialized, which are narrower than the rank or not linear.
            "error" refuses them, all in one message. "lora" leaves them ordinary LoRA, at the highest rank that fits.
        seed: draws random components, and where the solver starts.
        jobs: weights that are decomposed at a time, each by one thread.
        cache: a folder that keeps factors by the contents of their weight, for other runs.

    Raises:
        MiloraError: the adapter cannot be initialized exactly (DoRA, a second initialization, an unsupported layer, a
            rank above min(W.shape), a weight with NaN, a tied or quantized weight in residual form …). The model is
            then unchanged.
    """
    started = time.perf_counter()
    layers = ready_layers(model, adapter_name, form, unsupported)
    if milora_state_dict is None:
        choice = Choice(components, weighting, seed)
        factors = decompose_together(
            layers,
            lambda share: dict(decompose_layers(share, adapter_name, choice, _reader(share), jobs=jobs, cache=cache)),
        )
    else:
        factors = {name: _factors_from(milora_state_dict, name, layer, adapter_name) for name, layer in layers.items()}
        check_same_factors(factors)

    pairs = {name: flatten_stack(stack) for name, stack in factors.items()}
    sentences: list[str] = []
    if milora_state_dict is not None:
        origins = {name: decode_description(milora_state_dict[f"{name}.{_BASE}"]) for name in layers}
        sentences = check_origins(layers, origins, pairs, certified=True)
    rounding_errors = start_layers(model, adapter_name, layers, pairs, form)
    reports: dict[str, LayerReport] = {}
    for name, layer in layers.items():
        reports |= report_layer(name, layer, factors[name], rounding_errors[name])
    coverage = measure_coverage(model, adapter_name)
    sentences += leave_ordinary(model, adapter_name) + coverage.warnings + find_warnings(reports, weighting)
    for sentence in sentences:
        warnings.warn(sentence, MiloraWarning, stacklevel=2)
    return InitializationReport(reports, time.perf_counter() - started, sentences, coverage.share)


def get_milora_state_dict(
    model: PeftModel,
    *,
    adapter_name: str = "default",
    components: Components = "minor",
    weighting: Weighting = "singular",
    seed: int = 0,
    jobs: int = 1,
    cache: str | Path | None = None,
) -> dict[str, Tensor]:
    """Decompose the base weights of an adapter's layers; the model does not change.

    Returns `{layer}.lora_A.weight` `(r, in)`, `{layer}.lora_B.weight` `(out, r)`, `{layer}.singular_values` `(r + 1,)`,
    those of the band and then the largest of the weight, and `{layer}.base`, a digest of the weight, all on the CPU. Of
    E experts, the factors are `(E·r, in)` and `(out, r·E)` as in PEFT, and the singular values `(E, r + 1)`.

    Args:
        model: what `get_peft_model` returned; this and the other arguments are those of
            `initialize_lora_milora_weights`.

    Raises:
        MiloraError: see `initialize_lora_milora_weights`.
    """
    layers = ready_layers(model, adapter_name, "intact")
    state: dict[str, Tensor] = {}
    choice = Choice(components, weighting, seed)
    for name, stack in decompose_layers(layers, adapter_name, choice, _reader(layers), jobs=jobs, cache=cache):
        A, B = flatten_stack(stack)
        values = torch.stack(
            [torch.cat([one.singular_values, one.singular_values.new_tensor([one.largest])]) for one in stack]
        )
        state |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B, f"{name}.{_VALUES}": values.squeeze(0)}
    state |= {f"{name}.{_BASE}": encode_description(text) for name, text in describe_bases(layers).items()}
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


_VALUES, _BASE = "singular_values", "base"


def _reader(layers: dict[str, LoraLayer]) -> Callable[[str, int], Tensor]:
    return lambda name, index: read_weight(layers[name], index)


def report_layer(name: str, layer: LoraLayer, stack: Stack, rounding_error: float = 0.0) -> dict[str, LayerReport]:
    """Return the reports of a layer that starts from these factors: one, or one for each expert, by name."""
    reports = []
    for factors in stack:
        values = factors.singular_values
        band = values[0].item(), values[-1].item()
        reports.append(LayerReport(len(values), band, factors.largest, rounding_error, factors.certificate))
    return dict(zip(matrix_names(name, layer), reports, strict=True))


def start_layers(
    model: PeftModel,
    adapter_name: str,
    layers: dict[str, LoraLayer],
    factors: dict[str, tuple[Tensor, Tensor]],
    form: Form,
    *,
    origins: dict[str, str] | None = None,
    certified: bool = True,
) -> dict[str, float]:
    """Attach (A₀, B₀) to each layer and give the adapter its own config; return the errors of residual weights.

    `origins` describes the weights that the factors were made from, by default the present ones.
    """
    origins = origins or describe_bases(layers)
    tied = tied_weights(model)
    rounding_errors = dict.fromkeys(layers, 0.0)
    for name, layer in layers.items():
        A, B, is_tied = *factors[name], id(base_weight(layer)) in tied
        if isinstance(layer, ParamWrapper):
            attach_experts(layer, adapter_name, A, B, origin=origins[name], tied=is_tied)
        elif form == "intact":
            attach_factors(cast(LoraLinear, layer), adapter_name, A, B, origin=origins[name], tied=is_tied)
        else:
            linear = cast(LoraLinear, layer)
            rounding_errors[name] = attach_residual(linear, adapter_name, A, B, origin=origins[name], tied=is_tied)
    config = lora_config(model, adapter_name)
    model.peft_config[adapter_name] = make_milora_config(config, adapter_name, certified=certified)
    # PEFT has no hook there, and reads lora_A and lora_B directly. A partial, because deepcopy follows its arguments.
    model.base_model.add_weighted_adapter = partial(_combine_ordinary, model)  # type: ignore[assignment]
    return rounding_errors


def _combine_ordinary(model: PeftModel, adapters: list[str], *args: Any, **kwargs: Any) -> None:
    for name in adapters:
        if isinstance(model.peft_config.get(name), MiloraConfig):
            raise MiloraError(
                f"add_weighted_adapter would combine s·BA of adapter {name!r} without its −s·B₀A₀",
                "save it with save_milora_as_lora, load the result as an ordinary adapter and combine that",
            )
    LoraModel.add_weighted_adapter(cast(LoraModel, model.base_model), adapters, *args, **kwargs)


def _factors_from(state: dict[str, Tensor], name: str, layer: LoraLayer, adapter_name: str) -> Stack:
    try:
        A, B, values, _ = (state[f"{name}.{key}"] for key in ("lora_A.weight", "lora_B.weight", _VALUES, _BASE))
    except KeyError as error:
        raise MiloraError(f"milora_state_dict has no {error}", "make it with get_milora_state_dict") from error
    matrices = count_matrices(layer)
    if A.shape[0] != len(trained_factors(layer, adapter_name)[0]):
        raise MiloraError(
            f"{name}: milora_state_dict has rank {A.shape[0] // matrices}, and the adapter has rank "
            f"{layer.r[adapter_name]}",
            "make both with the same LoraConfig",
        )
    pairs = zip(*stack_factors(A, B, matrices), values.reshape(matrices, -1), strict=True)
    return [Factors(B, A, values[:-1], values[-1].item()) for A, B, values in pairs]


def find_warnings(reports: dict[str, LayerReport], weighting: Weighting) -> list[str]:
    """Return the warnings about an initialization, as sentences."""
    vanishing = [name for name, layer in reports.items() if layer.band[0] < VANISHING * layer.largest]
    if not vanishing or weighting == "orthonormal":
        return []
    return [
        f"{len(vanishing)} of {len(reports)} layers start from singular values below {VANISHING:g} of the largest "
        f'({vanishing[0]} …): factors near zero hardly train; weighting="orthonormal" gives them unit length'
    ]
