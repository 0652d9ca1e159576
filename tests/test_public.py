"""The public face: its names, and that it is light."""

import subprocess
import sys

import pytest

import milora


def test_all_names_resolve_and_are_documented():
    assert milora.__all__ == [
        "__version__",
        "Certificate",
        "ExportReport",
        "Factors",
        "InitializationReport",
        "LayerReport",
        "MiloraCallback",
        "MiloraError",
        "MiloraWarning",
        "decompose_weight",
        "get_milora_state_dict",
        "initialize_lora_milora_weights",
        "load_milora",
        "save_milora_as_lora",
    ]
    for name in milora.__all__[1:]:
        documentation = getattr(milora, name).__doc__
        # A dataclass without a docstring gets its signature as one.
        assert documentation and not documentation.startswith(f"{name}("), name
    assert dir(milora) == sorted(milora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = milora.nothing


LIGHT = [
    "import milora",
    "from milora.cli import app; app(['--help'], standalone_mode=False)",
    "from milora.cli import app; app(['show', 'quickstart'], standalone_mode=False)",
]


@pytest.mark.parametrize("code", LIGHT)
def test_no_torch_before_it_is_needed(code):
    check = f"{code}\nimport sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)
