"""The code and commands of the docs run as they are, but for a tiny model and a single step."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import drift, logits_of

DOCS = Path(__file__).parents[1] / "docs"


def code_of(page):
    return re.findall(r"```python\n(.*?)```", DOCS.joinpath(page).read_text(), re.DOTALL)


START, EXPORT, *TRAINERS = code_of("trl.md")
QUICKSTART = re.findall(r"^milora .*", DOCS.joinpath("quickstart.md").read_text(), re.MULTILINE)
ONE_STEP = (
    "max_steps=1, bf16=False, use_cpu=True, report_to='none', per_device_train_batch_size=4, learning_rate=1e-2, "
    "lr_scheduler_type='constant', disable_tqdm=True"
)
ASKED = [{"role": "user", "content": "1 + 1?"}]
ROWS = {
    "conversations": {"messages": [*ASKED, {"role": "assistant", "content": "2"}]},
    "preferences": {"prompt": "1 + 1?", "chosen": " 2", "rejected": " 3 or 4"},
    "judgments": {"prompt": "1 + 1?", "completion": " 2", "label": True},
    "prompts": {"prompt": "1 + 1 ="},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def test_the_page_has_four_trainers():
    assert [re.search(r"import \w+, (\w+)", code)[1] for code in TRAINERS] == [
        "SFTTrainer",
        "DPOTrainer",
        "KTOTrainer",
        "GRPOTrainer",
    ]
    assert all(code.strip().count("\n") < 10 for code in TRAINERS)


@pytest.mark.parametrize("code", TRAINERS, ids=["SFT", "DPO", "KTO", "GRPO"])
def test_its_code_runs(code, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():
        other = row | {"label": False} if "label" in row else row
        Path(f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, other) * 4))
    names = {}
    exec(START.replace("MODEL", str(small_model)), names)
    base = logits_of(names["model"])
    exec(re.sub(r"learning_rate=\S+, max_steps=100", ONE_STEP, code).replace("length=64", "length=4"), names)
    trained = logits_of(names["model"])
    exec(EXPORT, names)
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    assert drift(logits_of(PeftModel.from_pretrained(plain, "lora")), trained) <= 1e-5
    assert "GRPO" in code or drift(trained, base) > 1e-6  # all its rewards may be equal, and then nothing is learned


@pytest.mark.parametrize("page", ["quickstart.md", "trainer.md", "quantized.md"])
def test_the_code_of_a_page_runs(page, small_model, load_whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"rows": [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4}
    for code in code_of(page):
        one_step = "max_steps=1, use_cpu=True, report_to='none', disable_tqdm=True"
        exec(code.replace("MODEL", str(small_model)).replace("max_steps=100", one_step), names)
    exported = [folder for folder in ("out", "lora") if Path(folder, "adapter_model.safetensors").is_file()]
    if page != "quantized.md":
        plain = PeftModel.from_pretrained(load_whole(), exported[0])
        assert drift(logits_of(plain), logits_of(names["model"])) <= 1e-5


def test_the_readme_has_the_commands_of_the_quickstart():
    block = re.search(r"```sh\n(.*?)```", DOCS.joinpath("quickstart.md").read_text(), re.DOTALL)[1]
    readme = DOCS.parent.joinpath("README.md").read_text()
    assert len(block.splitlines()) == 5 and all(f"    {line}\n" in readme for line in block.splitlines())


@pytest.mark.parametrize("command", [line for line in QUICKSTART if "instruct-chat" not in line])
def test_the_commands_of_the_quickstart_run(command, finished, small_recipe, data_dir, call):
    rows = [{"messages": [*ASKED, {"role": "assistant", "content": f"2, not {wrong}"}]} for wrong in range(12)]
    call.folder.joinpath("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"chat-smoke": small_recipe, "RUN": finished[1], "128": 4, "16": 2}
    _, verb, *arguments = (words.get(word, word) for word in shlex.split(command))
    if verb == "eval":
        arguments += ["--data-dir", data_dir]
    code, out, err = call(verb, *arguments)
    assert code == 0, err
    assert {"run": "held-out loss", "eval": "gsm8k", "export": "adapter.gguf"}[verb] in out
