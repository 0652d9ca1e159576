"""How much of a model an adapter is on."""

import json
from dataclasses import dataclass

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from milora.method.unsupported import adapter_layers
from milora.method.variant.weights import base_weight, count_numbers


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an adapter is on.

    Attributes:
        share: the share of the numbers in the model's matrices, those of embeddings and of the output layer left out.
        experts: the ends of the names of experts' parameters that the adapter is not on.
    """

    share: float
    experts: list[str]

    @property
    def warnings(self) -> list[str]:
        """The sentence that the experts, most of a mixture, are left out; with the line that adds them."""
        if self.share >= 0.5 or not self.experts:
            return []
        return [
            f"the adapter is on {self.share:.0%} of the weights, embeddings aside: to train the experts too, pass "
            f"target_parameters={json.dumps(self.experts)} to LoraConfig"
        ]


def measure_coverage(model: PeftModel, adapter_name: str) -> Coverage:
    """Return how much of the base an adapter is on."""
    base = model.get_base_model()
    targeted = {id(base_weight(layer)) for layer in adapter_layers(model, adapter_name).values()}
    skipped = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    if head is not None:
        skipped |= {id(parameter) for parameter in head.parameters()} - targeted
    covered, total, experts = 0, 0, dict[str, None]()
    for module_name, module in base.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = parameter.ndim > 1 and not name.endswith("bias")  # experts have a bias each
            if not is_matrix or id(parameter) in skipped or ".lora_" in module_name:
                continue
            count = count_numbers(parameter)
            total += count
            if id(parameter) in targeted:
                covered += count
            elif parameter.ndim == 3 and min(parameter.shape) > 1 and not isinstance(module, nn.Conv1d):
                # Positions of an image, (1, n, d), are not a stack of matrices.
                experts[f"{module_name.replace('.base_layer', '').rpartition('.')[2]}.{name}"] = None
    return Coverage(covered / total, list(experts))
