"""MiLoRA (arXiv 2406.09044): low-rank fine-tuning that starts from the minor singular components of each weight."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milora.method.callback import MiloraCallback as MiloraCallback
    from milora.method.decomposition import Factors as Factors
    from milora.method.decomposition import decompose_weight as decompose_weight
    from milora.method.errors import MiloraError as MiloraError
    from milora.method.errors import MiloraWarning as MiloraWarning
    from milora.method.export import ExportReport as ExportReport
    from milora.method.export import save_milora_as_lora as save_milora_as_lora
    from milora.method.initialization import InitializationReport as InitializationReport
    from milora.method.initialization import LayerReport as LayerReport
    from milora.method.initialization import get_milora_state_dict as get_milora_state_dict
    from milora.method.initialization import initialize_lora_milora_weights as initialize_lora_milora_weights
    from milora.method.loading import load_milora as load_milora
    from milora.method.solver.certificate import Certificate as Certificate

__version__ = version("milora")

# Imported on first use: torch and PEFT are slow to import.
_HOME = {
    "Certificate": "solver.certificate",
    "ExportReport": "export",
    "Factors": "decomposition",
    "InitializationReport": "initialization",
    "LayerReport": "initialization",
    "MiloraCallback": "callback",
    "MiloraError": "errors",
    "MiloraWarning": "errors",
    "decompose_weight": "decomposition",
    "get_milora_state_dict": "initialization",
    "initialize_lora_milora_weights": "initialization",
    "load_milora": "loading",
    "save_milora_as_lora": "export",
}

__all__ = ["__version__", *sorted(_HOME)]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"milora.method.{_HOME[name]}"), name)
