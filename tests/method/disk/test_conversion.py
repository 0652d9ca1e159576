"""Plain PEFT trains the residual pair of `milora init`, and the result is converted for the original base.

Broken by: a pair that needs milora, a pair that is not the base at step 0, a conversion with other initial factors.
"""

import json
import os
import subprocess
import sys

import pytest
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import drift, logits_of, make_gpt2, make_qwen
from tests.served import read_gguf

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

ADAPTER = "adapter_model.safetensors"


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


TRAINER = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

original, pair, trained, logits = sys.argv[1:]
tokens = torch.randint(0, 200, (3, 16), generator=torch.Generator().manual_seed(3))
expected = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()(tokens).logits.detach()
base = AutoModelForCausalLM.from_pretrained(pair, dtype=torch.float32)
model = PeftModel.from_pretrained(base, pair + "/adapter", is_trainable=True).eval()
found = model(tokens).logits.detach()
assert torch.linalg.norm(found - expected) / torch.linalg.norm(expected) < 1e-5
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
losses = []
for _ in range(4):
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0]
model.save_pretrained(trained)
torch.set_printoptions(precision=10)
from safetensors.torch import save_file
save_file({"logits": model(tokens).logits.detach().contiguous()}, logits)
assert "milora" not in sys.modules
"""


# With lm_head among the targets PEFT saves the residual model's own lm_head beside the adapter.
MODELS = {"Conv1D, tied": (make_gpt2, "all-linear"), "biases, head": (make_qwen, "q_proj,down_proj,lm_head")}


@pytest.mark.parametrize(("make", "targets"), MODELS.values(), ids=MODELS.keys())
def test_plain_peft_trains_the_pair_and_gets_a_lora_for_the_original(make, targets, call, tmp_path):
    original, pair, trained, logits = (
        tmp_path / name for name in ("original", "pair", "trained", "logits.safetensors")
    )
    make().save_pretrained(original, max_shard_size="40kB")
    options = ("--rank", 4, "--alpha", 8, "--targets", targets, "--form", "residual")
    code, _, err = call("init", original, *options, "-o", pair)
    assert code == 0, err
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = map(str, (original, pair, trained, logits))
    subprocess.run([sys.executable, "-c", TRAINER, *paths], check=True, env=environment, capture_output=True)

    export = ("export", trained, "--initial", pair)
    code, out, err = call(*export)
    assert (code, out.strip()) == (0, str(trained / "export" / "lora")), err
    lora = PeftModel.from_pretrained(_load(original), trained / "export" / "lora")
    assert drift(logits_of(lora), load_file(logits)["logits"]) < 1e-5
    assert (lora.peft_config["default"].r, lora.peft_config["default"].base_model_name_or_path) == (
        8,
        f"local:{original.name}",
    )
    assert call(*export, "--rank", 2, "-o", tmp_path / "few")[0] == 0
    assert LoraConfig.from_pretrained(tmp_path / "few").r == 2

    code, out, err = call(*export, "--as", "gguf")
    assert (code, out.strip()) == (0, str(trained / "export" / "gguf" / "adapter.gguf")), err
    fields, tensors = read_gguf(out.strip())
    assert fields["general.base_model.0.name"] == f"local:{original.name}"
    assert len(tensors) == len([name for name in load_file(trained / ADAPTER) if "lora_" in name])

    moved = tmp_path / "moved" / "start"
    moved.parent.mkdir()
    pair.rename(moved)
    assert call("export", trained, "--initial", moved, "-o", tmp_path / "again")[0] == 0
    again, first = (folder / ADAPTER for folder in (tmp_path / "again", trained / "export" / "lora"))
    assert again.read_bytes() == first.read_bytes()
    moved.rename(pair)

    for message, arguments in {
        "use --as lora or --as gguf": (*export, "--as", "merged"),
        "is not a residual model": ("export", trained, "--initial", original),
        "does not contain adapter_model": ("export", original, "--initial", pair),
    }.items():
        _refuse(call, message, *arguments)
    assert call("init", original, *options, "--components", "principal", "-o", tmp_path / "principal")[0] == 0
    _refuse(call, f"was trained on {pair}", "export", trained, "--initial", tmp_path / "principal")
    config, weights = trained / "adapter_config.json", trained / ADAPTER
    whole, state = config.read_text(), load_file(weights)
    forgotten = json.loads(whole) | {"revision": None}  # by a trainer that writes a config of its own
    config.write_text(json.dumps(forgotten))
    assert call(*export)[0] == 0
    config.write_text(json.dumps(forgotten | {"base_model_name_or_path": "/elsewhere"}))
    _refuse(call, "its trainer did not keep the revision", *export)
    _refuse(call, f'"revision": "{json.loads(whole)["revision"]}"', *export)
    config.write_text(whole.replace('"lora_alpha": 8', '"lora_alpha": 16'))
    _refuse(call, "has lora_alpha=16", *export)
    config.write_text(whole)
    some = next(name for name in state if "lora_" in name)
    weights.unlink()  # not in place: what was loaded is mapped from it
    save_file({name: value for name, value in state.items() if name != some}, weights)
    _refuse(call, f"has {some}", *export)
    (pair / "adapter" / ADAPTER).unlink()
    save_file(state, pair / "adapter" / ADAPTER)  # a trainer that writes where it read
    _refuse(call, "is not the adapter that training started from", *export)


def _refuse(call, message, *arguments):
    code, _, err = call(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
