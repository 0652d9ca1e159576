"""What a recipe's adapter targets, checked on the model's structure: its weights are not needed."""

import re
from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D

from milora.method.errors import MiloraError
from milora.method.layers import fitting_layers
from milora.models.base import load_skeleton
from milora.models.methods import ALL_LINEAR, make_config, put_adapter
from milora.models.vision import find_language_model
from milora.run.sections import AdapterSection, ModelSection


def check_targets(model: ModelSection, adapter: AdapterSection) -> None:
    """Raise unless the adapter can be put on a model of this structure.

    Raises:
        MiloraError: a name or an expression matches nothing in the model, or the adapter's layers break a rule of PEFT
            or of MiLoRA.
    """
    if adapter.method == "full":
        return
    skeleton = load_skeleton(model)
    modules = dict(skeleton.named_modules())
    linear = [name for name, part in modules.items() if isinstance(part, (nn.Linear, Conv1D))]
    if adapter.target_modules != ALL_LINEAR:
        language = find_language_model(skeleton)
        if language is None or isinstance(adapter.target_modules, str):
            inside, kind = linear, "linear layer of"
        else:  # a name means nothing outside of it, see `put_adapter`
            inside = [name for name in linear if name.startswith((f"{language}.", "lm_head"))]
            kind = "linear layer of the language model of"
        _check("target_modules", adapter.target_modules, inside, f"{kind} {model.name}")
    if adapter.exclude_modules is not None:
        _check("exclude_modules", adapter.exclude_modules, linear, f"linear layer of {model.name}")
    _check("modules_to_save", adapter.modules_to_save, modules, f"module of {model.name}")
    parameters = [name for name, _ in skeleton.named_parameters()]
    _check("target_parameters", adapter.target_parameters, parameters, f"parameter of {model.name}")

    # Only names and shapes are of interest here, and other methods compute with the weights.
    plain = adapter.model_copy(update={"method": "lora"})
    peft_model = put_adapter(skeleton, make_config(plain))
    targeted = peft_model.targeted_module_names
    for index in adapter.layers_to_transform or []:
        if not any(f".{index}." in name for name in targeted):
            raise MiloraError(
                f"adapter.layers_to_transform: {model.name} has no layer {index} with a target module",
                "layers are counted from 0",
            )
    if adapter.method == "milora":
        fitting_layers(peft_model, "default", adapter.form, adapter.unsupported)


def _check(key: str, wanted: str | list[str], names: Iterable[str], kind: str) -> None:
    """Raise unless each of the wanted names, or the expression, matches one of `names`, as PEFT matches them."""
    names = list(names)
    known = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()} - {""})
    if isinstance(wanted, str):
        if not any(re.fullmatch(wanted, name) for name in names):
            raise MiloraError(
                f"adapter.{key}={wanted}: the expression matches no {kind}",
                f"it is matched with whole names, such as {names[-1]}; the last parts are {', '.join(known)}",
            )
        return
    unknown = [one for one in wanted if not any(name == one or name.endswith(f".{one}") for name in names)]
    if unknown:
        inside = [one for one in unknown if any(f"{one}." in name for name in names)]
        raise MiloraError(
            f"adapter.{key}: {', '.join(unknown)} is not a {kind}",
            f"for everything inside of it, write the expression .*{inside[0]}.*" if inside else _list(known),
        )


def _list(known: list[str]) -> str:
    return f"it has {', '.join(known)}"
