"""An adapter that another trainer made of a residual model → an ordinary LoRA for the original base."""

import json
from pathlib import Path

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from milora.method.disk.start import ADAPTER, RECORD
from milora.method.errors import MiloraError
from milora.method.export import ExportReport, combine_updates, write_lora
from milora.method.files import hash_file
from milora.method.variant import join_factors

SHAPING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "bias")


def convert_adapter(path: Path, trained: Path, initial: Path, *, rank: int | None = None) -> ExportReport:
    """Write an adapter that started from a residual pair as one ordinary LoRA of rank 2r for the original base.

        ΔW = s·(B A − B₀ A₀) = s·[B − B₀, B₀] [A; A − A₀]

    Args:
        trained: the adapter's folder.
        initial: the folder of the residual model that it was trained on, with A₀ and B₀ in adapter/.
        rank: see `save_milora_as_lora`.

    Raises:
        MiloraError: `initial` is no such folder or its adapter is not A₀ and B₀ any more, or `trained` has another
            shape or more than a LoRA's factors.
    """
    record = initial / RECORD
    content = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if "adapter_sha256" not in content:
        raise MiloraError(f"{initial} is no residual model", "name the folder that milora init --form residual wrote")
    start = initial / ADAPTER
    if not (start / SAFETENSORS_WEIGHTS_NAME).is_file() or (
        hash_file(start / SAFETENSORS_WEIGHTS_NAME) != content["adapter_sha256"]
    ):
        raise MiloraError(
            f"{start} is not the adapter that training started from",
            "make it again: milora init with the same options writes the same factors",
        )
    config, state = _read_adapter(trained)
    if Path(str(config.base_model_name_or_path)).resolve() != initial.resolve():
        raise MiloraError(
            f"{trained} was trained on {config.base_model_name_or_path}, not on {initial}",
            "name that, or where it was moved, mend base_model_name_or_path in the adapter's config",
        )
    initial_config, factors = _read_adapter(start)
    for option in SHAPING:
        if getattr(config, option) != getattr(initial_config, option):
            raise MiloraError(
                f"{trained} has {option}={getattr(config, option)!r}, {start} {getattr(initial_config, option)!r}",
                "name the residual model that the adapter was trained on",
            )
    different = {name for name in state if "lora_" in name} ^ factors.keys()
    if different:
        raise MiloraError(
            f"only one of {trained} and {start} has {min(different)}",
            "name the residual model that the adapter was trained on",
        )
    # PEFT saves a targeted lm_head beside its factors: here that is W − s·B₀A₀, which the original base must not get.
    state = {name: tensor for name, tensor in state.items() if ".base_layer." not in name}
    updates = {}
    for name, scaling in content["scaling"].items():
        keys = [f"{name}.{part}.weight" for part in ("lora_A", "lora_B")]
        A0, B0 = (factors[key] for key in keys)
        A, B = (state[key].to(factors[key].dtype) for key in keys)
        if (A.shape, B.shape) != (A0.shape, B0.shape):
            raise MiloraError(
                f"{name}: the adapters have the shapes {tuple(B.shape)}, {tuple(A.shape)} and {tuple(B0.shape)}, "
                f"{tuple(A0.shape)}",
                "name the residual model that the adapter was trained on",
            )
        up, down = join_factors(A, B, A0, B0)
        updates[name] = up * scaling, down
    config.base_model_name_or_path = content["options"]["model"]
    return write_lora(path, combine_updates(state, config, updates, rank))


def _read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    for file in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
        if not (folder / file).is_file():
            raise MiloraError(f"{folder} holds no {file}", "name a folder that save_pretrained wrote")
    try:
        state = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except SafetensorError as error:
        raise MiloraError(f"{folder / SAFETENSORS_WEIGHTS_NAME} is not whole: {error}", "save it again") from error
    return LoraConfig.from_pretrained(str(folder)), state
