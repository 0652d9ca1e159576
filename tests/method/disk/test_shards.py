"""`milora init` on a damaged checkpoint, with invalid options, on a full disk: two lines on stderr, exit code 2."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def _only_pickles(model):
    for file in model.glob("*.safetensors*"):
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(b"a pickle")


def _truncate(model):
    shard = model / "model-00002-of-00012.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def _lose_a_shard(model):
    (model / "model-00002-of-00012.safetensors").unlink()


def _name_what_is_absent(model):
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["nothing.weight"] = "model-00002-of-00012.safetensors"
    index.write_text(json.dumps(content))


def _leave_the_folder(model):
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))


def _break_the_index(model):
    (model / "model.safetensors.index.json").write_text('{"weight_map": ')


def _rename(model):
    _edit(model, lambda name, value: ("other." + name, value))
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {f"other.{name}": file for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))


def _put_nan(model):
    _edit(model, lambda name, value: (name, value * float("nan") if "1.self_attn.q_proj" in name else value))


def _quantize(model):
    _edit(model, lambda name, value: (name, value.to(torch.float8_e4m3fn) if "q_proj" in name else value))


def _edit(model, change):
    for shard in model.glob("*.safetensors"):
        state = dict(change(name, value) for name, value in load_file(shard).items())
        shard.unlink()  # not in place: what was loaded is mapped from it
        save_file(state, shard)


DAMAGES = [
    (_only_pickles, "does not contain weights in safetensors, only pickles"),
    (_truncate, "00002-of-00012.safetensors is incomplete"),
    (_lose_a_shard, "lacks model-00002-of-00012.safetensors"),
    (_name_what_is_absent, "lacks nothing.weight"),
    (_leave_the_folder, "is in another folder"),
    (_break_the_index, "is not an index of weights"),
    (_rename, "does not contain model.layers.0.self_attn.q_proj.weight"),
    (_put_nan, "1.self_attn.q_proj: the weight contains NaN or Inf"),
    (_quantize, "is F8_E4M3 (64, 64)"),
]

INVALID = [
    (("--rank", 65), "2 × q_proj: rank 65 is above 64"),
    (("--targets", "q_prj"), "q_prj is not a linear layer of"),
    (("--targets", "nine.q_proj"), "nine.q_proj is not a linear layer of"),
    (("-o", "MODEL"), "is the model itself"),
    (("-o", "MODEL/../model"), "is the model itself"),
    (("-o", "/dev/null/out"), "Not a directory"),
    (("-o", "OTHER"), "contains config.json of another model"),
]


@pytest.fixture
def refuse(call, tmp_path):
    def refuse(message, *options):
        code, _, err = call(
            "init", tmp_path / "model", "--rank", 4, "--targets", "q_proj", "-o", tmp_path / "out", *options
        )
        lines = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
        assert code == 2 and len(lines) == 2 and message in lines[0]
        assert "Traceback" not in err
        assert not (tmp_path / "out" / "adapter_config.json").exists()

    make_llama().save_pretrained(tmp_path / "model", max_shard_size="40kB")
    return refuse


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[row[1] for row in DAMAGES])
def test_a_damaged_checkpoint(refuse, tmp_path, damage, message):
    damage(tmp_path / "model")
    refuse(message)


@pytest.mark.parametrize(("options", "message"), INVALID, ids=[row[1] for row in INVALID])
def test_invalid_options(refuse, tmp_path, options, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    names = {"MODEL": tmp_path / "model", "OTHER": tmp_path / "other", "MODEL/../model": "model/../model"}
    refuse(message, *(names.get(option, option) for option in options))


@pytest.mark.parametrize(
    ("base", "size"), [("intact", "16k"), ("intact", "40k"), ("residual", "40k"), ("residual", "100k")]
)
def test_a_full_disk(refuse, call, tmp_path, base, size):
    """The disk is full while factors are written, or later; with free space the same command resumes."""
    (tmp_path / "out").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path / "out")], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        refuse("", "--form", base, "--targets", "q_proj,gate_proj")
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "out")], check=True)
        options = ("--rank", 4, "--targets", "q_proj,gate_proj", "--form", base)
        assert call("init", tmp_path / "model", *options, "-o", tmp_path / "out")[0] == 0
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)


def test_two_processes_on_one_folder(refuse, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refuse("another process")
