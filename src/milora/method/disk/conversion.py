"""Converts an adapter that another trainer made on a residual model to an ordinary LoRA for the original base."""

from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from milora.method.disk.record import ADAPTER, RECORD
from milora.method.disk.start import name_start
from milora.method.errors import MiloraError
from milora.method.export import ExportReport, write_lora
from milora.method.files import hash_file, read_json
from milora.method.ordinary import pack_updates
from milora.method.variant.linear import join_factors

ANOTHER_START = "pass the residual model that the adapter was trained on"
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
    record = _read_record(initial)
    start = _read_adapter(initial / ADAPTER)
    adapter = _read_adapter(trained)
    _check_same_start(trained, adapter.config, initial, record["adapter_sha256"])
    _check_same_shape(trained, adapter, initial, start)
    # PEFT saves a targeted lm_head beside its factors: here it is W − s·B₀A₀, which does not belong to the base.
    state = {name: tensor for name, tensor in adapter.state.items() if ".base_layer." not in name}
    updates = {}
    for name, scaling in record["scaling"].items():
        keys = [f"{name}.{part}.weight" for part in ("lora_A", "lora_B")]
        A0, B0 = (start.state[key] for key in keys)
        A, B = (state[key].to(start.state[key].dtype) for key in keys)
        if (A.shape, B.shape) != (A0.shape, B0.shape):
            raise MiloraError(
                f"{name}: the adapters have the shapes {tuple(B.shape)}, {tuple(A.shape)} and {tuple(B0.shape)}, "
                f"{tuple(A0.shape)}",
                ANOTHER_START,
            )
        up, down = join_factors(A, B, A0, B0)
        updates[name] = (up * scaling)[None], down[None]
    options = record["options"]
    config = read_json(trained / CONFIG_NAME)
    config |= {"base_model_name_or_path": options["model"], "revision": options.get("revision")}
    return write_lora(path, state, config, pack_updates(updates, rank, None))


def is_residual_model(folder: Path) -> bool:
    """Whether `milora init --form residual` wrote this folder."""
    return (folder / RECORD).is_file() and "adapter_sha256" in read_json(folder / RECORD)


class _Adapter(NamedTuple):
    config: LoraConfig
    state: dict[str, Tensor]


def _read_record(initial: Path) -> dict[str, Any]:
    if not is_residual_model(initial):
        raise MiloraError(
            f"{initial} is not a residual model", "pass the folder that milora init --form residual wrote"
        )
    record: dict[str, Any] = read_json(initial / RECORD)
    weights = initial / ADAPTER / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file() or hash_file(weights) != record["adapter_sha256"]:
        raise MiloraError(
            f"{initial / ADAPTER} is not the adapter that training started from",
            "create it again: milora init with the same options writes the same factors",
        )
    return record


def _check_same_start(trained: Path, config: LoraConfig, initial: Path, digest: str) -> None:
    """Raise unless the adapter was trained on this start, wherever that is now."""
    base, revision, own = config.base_model_name_or_path, config.revision, name_start(digest)
    if (revision or own) != own:
        raise MiloraError(f"{trained} was trained on {base}, which was {revision}; {initial} is {own}", ANOTHER_START)
    if revision is None and Path(str(base)).resolve() != initial.resolve():
        raise MiloraError(
            f"{trained} was trained on {base}, not on {initial}, and its trainer did not keep the revision",
            f'pass that folder, or if this is it, set "revision": "{own}" in {trained / CONFIG_NAME}',
        )


def _check_same_shape(trained: Path, adapter: _Adapter, initial: Path, start: _Adapter) -> None:
    for option in SHAPING:
        found, expected = getattr(adapter.config, option), getattr(start.config, option)
        if found != expected:
            raise MiloraError(f"{trained} has {option}={found!r}, and its start has {expected!r}", ANOTHER_START)
    different = {name for name in adapter.state if "lora_" in name} ^ start.state.keys()
    if different:
        raise MiloraError(f"only one of {trained} and {initial / ADAPTER} has {min(different)}", ANOTHER_START)


def _read_adapter(folder: Path) -> _Adapter:
    for file in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
        if not (folder / file).is_file():
            raise MiloraError(f"{folder} does not contain {file}", "pass a folder that save_pretrained wrote")
    try:
        state = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except SafetensorError as error:
        raise MiloraError(f"{folder / SAFETENSORS_WEIGHTS_NAME} is incomplete: {error}", "save it again") from error
    return _Adapter(LoraConfig.from_pretrained(str(folder)), state)
