"""The example scripts run as a user runs them, on a small model and two rows."""

import json
import runpy
from pathlib import Path

import pytest
from peft import PeftModel

from tests.conftest import drift, logits_of

EXAMPLES = sorted(Path(__file__).parents[1].joinpath("examples").glob("*.py"))
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in (("Name a color.", "Blue."), ("What is 1 + 1?", "2, as everyone knows."))
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_it_trains_a_lora_that_plain_peft_loads(script, small_model, load_whole, tmp_path, monkeypatch):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr("sys.argv", [str(script), str(small_model), str(rows), str(out), "2"])
    runpy.run_path(str(script), run_name="__main__")
    trained = logits_of(PeftModel.from_pretrained(load_whole(), out))
    assert drift(trained, logits_of(load_whole())) > 1e-6


def test_both_are_short():
    assert [script.stem for script in EXAMPLES] == ["training_loop", "trl_sft"]
    assert all(script.read_text().count("\n") < 60 for script in EXAMPLES)
