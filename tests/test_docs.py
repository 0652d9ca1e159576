"""The code of the page about TRL runs as it is, but for a tiny model and a single step."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import drift, logits_of

PAGE = Path(__file__).parents[1].joinpath("docs", "trl.md").read_text()
START, EXPORT, *TRAINERS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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
