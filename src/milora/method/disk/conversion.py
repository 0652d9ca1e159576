"""Converts an adapter that another trainer made on a residual model to an ordinary LoRA for the original base."""

from pathlib import Path

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from milora.method.disk.start import ADAPTER, RECORD
from milora.method.errors import MiloraError
from milora.method.export import ExportReport, combine_updates, write_lora
from milora.method.files import hash_file, read_json
from milora.method.variant import join_factors

SHAPING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "bias")


def convert_adapter(path: Path, trained: Path, initial: Path, *, rank: int | None = None) -> ExportReport:
    """Write an adapter that was trained on a residual model as one ordinary LoRA of rank 2r for the original base.

        ΔW = s·(B A − B₀ A₀) = s·[B − B₀, B₀] [A; A − A₀]

    Args:
        path: the folder to write to.
        trained: the folder of the adapter.
        initial: the folder of the residual model that it was trained on, with A₀ and B₀ in adapter/.
        rank: see `save_milora_as_lora`.

    Raises:
        MiloraError: `initial` is not a residual model or its adapter has been changed, or `trained` has another shape
            or other tensors.
    """
    record = initial / RECORD
    content = read_json(record) if record.is_file() else {}
    if "adapter_sha256" not in content:
        raise MiloraError(
            f"{initial} is not a residual model", "pass the folder that milora init --form residual wrote"
        )
    start = initial / ADAPTER
    if not (start / SAFETENSORS_WEIGHTS_NAME).is_file() or (
        hash_file(start / SAFETENSORS_WEIGHTS_NAME) != content["adapter_sha256"]
    ):
        raise MiloraError(
            f"{start} is not the adapter that training started from",
            "create it again: milora init with the same options writes the same factors",
        )
    config, state = _read_adapter(trained)
    if Path(str(config.base_model_name_or_path)).resolve() != initial.resolve():
        raise MiloraError(
            f"{trained} was trained on {config.base_model_name_or_path}, not on {initial}",
            "pass that folder, or if it was moved, fix base_model_name_or_path in the adapter's config",
        )
    initial_config, factors = _read_adapter(start)
    for option in SHAPING:
        found, expected = getattr(config, option), getattr(initial_config, option)
        if found != expected:
            raise MiloraError(
                f"{trained} has {option}={found!r}, and {start} has {expected!r}",
                "pass the residual model that the adapter was trained on",
            )
    different = {name for name in state if "lora_" in name} ^ factors.keys()
    if different:
        raise MiloraError(
            f"only one of {trained} and {start} has {min(different)}",
            "pass the residual model that the adapter was trained on",
        )
    # PEFT saves a targeted lm_head beside its factors: here it is W − s·B₀A₀, which does not belong to the base.
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
                "pass the residual model that the adapter was trained on",
            )
        up, down = join_factors(A, B, A0, B0)
        updates[name] = up * scaling, down
    config.base_model_name_or_path = content["options"]["model"]
    return write_lora(path, combine_updates(state, config, updates, rank))


def _read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    for file in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
        if not (folder / file).is_file():
            raise MiloraError(f"{folder} does not contain {file}", "pass a folder that save_pretrained wrote")
    try:
        state = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except SafetensorError as error:
        raise MiloraError(f"{folder / SAFETENSORS_WEIGHTS_NAME} is incomplete: {error}", "save it again") from error
    return LoraConfig.from_pretrained(str(folder)), state
