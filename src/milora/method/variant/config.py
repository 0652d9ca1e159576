"""The config of a MiLoRA adapter: PEFT's, which says in its saved form that plain PEFT cannot load the adapter."""

from copy import deepcopy
from typing import Any

from peft import LoraConfig, PeftModel

# What plain PEFT prints as an unknown initialization when it meets the saved adapter.
_LOAD = "load this adapter with milora.load_milora(base_model, path)"
_CERTIFIED, _UNCERTIFIED = f"milora: {_LOAD}", f"milora-uncertified: {_LOAD}"


class MiloraConfig(LoraConfig):
    """The config of an initialized adapter, a copy of the one that the user passed.

    In memory it is an ordinary LoraConfig. Only what is saved is marked.

    Attributes:
        source: the adapter that it belongs to. An adapter that is added to the same model with this config, as TRL does
            for the reference of preference trainers, is a copy of the source.
        certified: whether the factors can be checked against the base. LoRA-GA's cannot: they come from gradients.
    """

    source: str
    certified: bool

    def to_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        saved["init_lora_weights"] = _CERTIFIED if self.certified else _UNCERTIFIED
        return saved


def make_milora_config(config: LoraConfig, adapter_name: str, *, certified: bool) -> MiloraConfig:
    """Return a copy of an adapter's config as that of an initialized adapter."""
    made = MiloraConfig.__new__(MiloraConfig)  # LoraConfig's checks are of a config that a user writes
    vars(made).update(deepcopy(vars(config)))
    made.source, made.certified = adapter_name, certified
    return made


def make_ordinary_config(config: LoraConfig) -> LoraConfig:
    """Return a copy of an adapter's config that plain PEFT can load."""
    made = LoraConfig.__new__(LoraConfig)
    own = MiloraConfig.__annotations__
    vars(made).update({name: deepcopy(value) for name, value in vars(config).items() if name not in own})
    made.init_lora_weights = True
    return made


def is_saved_milora(config: LoraConfig) -> bool:
    """Return whether a config that was read from a file is that of a MiLoRA adapter."""
    return str(config.init_lora_weights).startswith("milora")


def is_saved_certified(config: LoraConfig) -> bool:
    """Return whether the factors of a saved MiLoRA adapter can be checked against the base."""
    return not str(config.init_lora_weights).startswith("milora-uncertified")


def lora_config(model: PeftModel, adapter_name: str) -> LoraConfig:
    """Return the config of a LoRA adapter."""
    config = model.peft_config[adapter_name]
    assert isinstance(config, LoraConfig)
    return config
