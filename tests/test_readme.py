"""The README's own code and commands run as they are, on a small model."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from milora.__main__ import main
from tests.conftest import drift, logits_of

README = Path(__file__).parents[1].joinpath("README.md").read_text()
CODE = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
COMMANDS = [line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("milora ")]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_code_starts_by_line_12():
    assert README[: README.index("```python")].count("\n") < 12


def test_code_runs(small_model, load_whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(CODE.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(small_model)), names)
    assert torch.equal(logits_of(names["model"]), logits_of(load_whole()))
    assert drift(logits_of(PeftModel.from_pretrained(load_whole(), "out")), logits_of(load_whole())) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, finished, small_model, small_recipe, tmp_path, monkeypatch):
    words = {"quickstart": small_recipe, "RUN": str(finished[1]), "MODEL": str(small_model)}
    if " compare " in command:
        words["quickstart"] = str(tmp_path / "few.yaml")
        grid = (
            "overrides: [training.max_steps=1]\narms: {LoRA: [adapter.method=lora], MiLoRA: []}\nlearning_rates: [1e-3]"
        )
        Path(words["quickstart"]).write_text(f"name: few\nrecipe: {small_recipe}\n{grid}\n")
    if command == "milora runs":
        tmp_path.joinpath("runs").symlink_to(finished[1].parent)
    if " chat " in command:
        command += " --max-new-tokens 8"
    _, *arguments = (words.get(word, word) for word in shlex.split(command))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["milora", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code


def test_make_has_the_targets():
    root = Path(__file__).parents[1]
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        subprocess.run(["make", "--dry-run", target], cwd=root, check=True, stdout=subprocess.DEVNULL)
