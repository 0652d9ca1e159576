"""The wheel, in a fresh virtual environment with the core dependencies alone: what `pip install milora` gives."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

SCRIPT = """
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import milora

config = LlamaConfig(
    num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=2, vocab_size=100
)
torch.manual_seed(0)
base = LlamaForCausalLM(config).eval()
base.save_pretrained("base")
tokens = torch.arange(12)[None]


@torch.no_grad()
def logits_of(model):
    return model.eval()(tokens).logits


def load_base():
    return LlamaForCausalLM.from_pretrained("base", dtype=torch.float32)


model = get_peft_model(load_base(), LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
milora.initialize_lora_milora_weights(model)
assert torch.equal(logits_of(model), logits_of(base)), "at step 0 the model is not the base"

model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
model(tokens, labels=tokens).loss.backward()
optimizer.step()
trained = logits_of(model)
assert not torch.equal(trained, logits_of(base)), "a training step changed nothing"

milora.save_milora_as_lora("out", model)
reloaded = logits_of(PeftModel.from_pretrained(load_base(), "out"))
drift = (torch.linalg.norm(reloaded - trained) / torch.linalg.norm(trained)).item()
assert drift < 1e-5, f"the exported LoRA is off by {drift}"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # pip builds it in an environment of its own, for which it downloads the build backend.
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("milora-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a virtual environment that contains the wheel and what it depends on.

    The dependencies are links to those of this environment, which has the versions of constraints.txt: to install them
    again takes a minute. pip checks that none is missing.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for name in depend_on("milora") - {"milora"}:
        for entry in {file.parts[0] for file in distribution(name).files} - {"..", "__pycache__"}:
            if not (target / entry).exists():
                (target / entry).symlink_to(distribution(name).locate_file(entry))
    run(*pip, "check")
    return programs


def depend_on(name: str, extras: frozenset[str] = frozenset({""})) -> set[str]:
    """Return a package and all that it needs, without extras of its own."""
    needed, waiting = {(name, extras)}, [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        for requirement in map(Requirement, distribution(name).requires or ()):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras):
                found = (requirement.name, frozenset({"", *requirement.extras}))
                waiting += {found} - needed
                needed.add(found)
    return {name for name, _ in needed}


def run(*command: str | Path, folder: Path | None = None) -> str:
    """Run a command where only what it has installed can be imported."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_contains_every_file_of_the_package_and_no_other(wheel):
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in source.joinpath("milora").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_commands_run_with_the_core_dependencies(installed, tmp_path):
    assert run(installed / "milora", "--version", folder=tmp_path).startswith("milora ")
    assert "quickstart" in run(installed / "milora", "ls", folder=tmp_path)
    assert "rank: 16" in run(installed / "milora", "show", "quickstart", folder=tmp_path)


def test_the_library_runs_with_the_core_dependencies(installed, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run(installed / "python", script, folder=tmp_path)
