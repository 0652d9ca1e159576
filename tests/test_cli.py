"""The commands from end to end, and every bad input: two lines on stderr, exit code 2, no traceback."""

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import milora
from milora import cli
from milora.run.directory import create_run
from milora.run.recipe import load_recipe
from milora.training.checkpoints import CompletionMark
from milora.training.prepare import locate
from tests.conftest import drift, logits_of
from tests.served import read_gguf

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_run_trains_evaluates_exports_and_reports(finished, small_model):
    done, run = finished
    assert "arithmetic" in done.stdout and "Traceback" not in done.stderr
    training = json.loads((run / "training.json").read_text())
    before, after = training["held_out_loss"]
    assert after < before and training["steps"] == 8 and len(training["losses"]) == 8
    for who in ("base", "trained"):
        # Another test may have scored the run under other settings, which are kept beside these.
        folders = (run / "evaluation" / who / "arithmetic").iterdir()
        (folder,) = [folder for folder in folders if json.loads((folder / "scores.json").read_text())["count"] == 4]
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert len(samples) == 4
        scores = json.loads((folder / "scores.json").read_text())
        found = scores["metrics"]["corrected"]["value"]
        assert found == sum(sample["grades"]["corrected"]["score"] for sample in samples) / 4
    assert list((run / "tensorboard").iterdir())
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    exported = logits_of(PeftModel.from_pretrained(base, run / "export" / "lora"))
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    assert drift(exported, logits_of(milora.load_milora(base, run / "adapter"))) < 1e-5


def test_a_run_says_what_it_trains_on_and_how_to_load_the_result(finished):
    done, run = finished
    assert "training on 64 rows, 8 held out; " in done.stderr and "8 steps of 4 rows; template plain" in done.stderr
    (example,) = [line for line in done.stderr.splitlines() if line.startswith("first row: ")]
    assert example.startswith("first row: 'Question: ") and "Answer:⟦ " in example and example.endswith("<|im_end|>⟧'")
    load = done.stdout.partition("to load it:\n")[2].strip()
    names = {}
    exec(load, names)
    assert isinstance(names["model"], PeftModel) and len(load.splitlines()) == 3
    assert load in html.unescape((run / "report.html").read_text())
    assert "PeftModel.from_pretrained(" in (run / "export" / "lora" / "README.md").read_text()


def test_report_is_one_page_with_pictures_and_its_caveat(finished):
    _, run = finished
    page = (run / "report.html").read_text()
    assert (
        page.count('role="img"') == 4  # a score's interval, the losses, the rate, and the spectra
        and "What this run is evidence of, and what it is not" in page
        and "http" not in page.split("</style>")[0]
    )
    for word in ("arithmetic", "Loss on held-out rows", "Samples", "extra=forbid"):
        assert (word in page) == (word != "extra=forbid")


def test_no_pickle_is_left(finished):
    _, run = finished
    assert not [file for file in run.rglob("*") if file.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]


def test_the_same_command_returns_at_once(finished, small_recipe, call):
    _, run = finished
    before = {file: file.stat().st_mtime_ns for file in (run / "evaluation").rglob("*.json*")}
    code, out, _ = call("run", small_recipe, "--runs", run.parent)
    assert code == 0 and "arithmetic" in out
    assert {file: file.stat().st_mtime_ns for file in (run / "evaluation").rglob("*.json*")} == before


def test_a_run_directory_is_continued_and_its_recipe_is_fixed(finished, call, tmp_path):
    run = tmp_path / "renamed"
    shutil.copytree(finished[1], run)
    before = (run / "training.json").stat().st_mtime_ns
    code, out, _ = call("run", run)
    assert code == 0 and "arithmetic" in out and (run / "training.json").stat().st_mtime_ns == before
    code, _, err = call("train", run, "seed=1")
    assert code == 2 and "is a run, whose recipe is fixed" in err


def test_a_run_whose_data_changed_is_not_continued(small_recipe, call, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1", "answer": "2"}\n' * 40)
    overrides = [f"data.name={rows}", "data.validation_rows=0", "training.max_steps=1", "adapter.method=lora"]
    code, out, err = call("train", small_recipe, *overrides, "--runs", tmp_path / "runs")
    assert code == 0, err
    rows.write_text('{"question": "1", "answer": "3"}\n' * 40)
    code, _, err = call("train", out.strip())
    assert code == 2 and "started with other data or model files" in err
    rows.unlink()
    code, _, err = call("train", out.strip())
    assert code == 2 and "the file does not exist" in err


@pytest.mark.parametrize("place", ["adapter", ".", "export/lora"])
def test_an_export_writes_over_nothing(finished, call, place):
    _, run = finished
    before = {file: file.read_bytes() for file in run.rglob("*.safetensors")}
    code, _, err = call("export", run, "-o", run / place)
    assert code == 2 and "is not an empty folder" in err
    assert {file: file.read_bytes() for file in run.rglob("*.safetensors")} == before
    code, _, err = call("export", run)  # its own place is written again
    assert code == 0, err


@pytest.mark.parametrize(
    ("key", "commands", "message"),
    [
        ("evaluation.allow_code_execution", [("eval", "--tasks", "humaneval")], "runs programs that a model wrote"),
        ("model.trust_remote_code", [("eval",), ("export",), ("run",), ("train",)], "pass --trust-remote-code"),
    ],
)
def test_a_run_directory_does_not_permit_itself_to_run_code(finished, call, tmp_path, key, commands, message):
    run = tmp_path / "from-a-stranger"
    shutil.copytree(finished[1], run)
    section, name = key.split(".")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(f"{section}:\n", f"{section}:\n  {name}: true\n"))
    for command, *options in commands:
        code, _, err = call(command, run, *options)
        assert code == 2 and message in err, command


def test_the_code_track_does_not_permit_itself(call, tmp_path):
    code, _, err = call("run", "code-smoke", "--runs", tmp_path / "runs")
    assert code == 2 and "evaluation.allow_code_execution=true" in err
    assert not (tmp_path / "runs").exists()


def test_runs_are_listed(finished, call, tmp_path):
    _, run = finished
    code, out, _ = call("runs", run.parent)
    head, row = out.splitlines()
    assert code == 0 and head.split()[:2] == ["run", "state"]
    assert row.startswith(run.name) and "reported" in row and "arithmetic 0.0" in row and "→" in row
    code, _, err = call("runs", tmp_path)
    assert code == 2 and "contains no run directory" in err


def test_runs_are_told_apart_by_what_differs(call, tmp_path):
    for seed in (0, 1):
        create_run(locate(load_recipe("quickstart", [f"seed={seed}"]), tmp_path))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "recipe.yaml").write_text("name: old\n")
    code, out, _ = call("runs", tmp_path)
    rates_and_seeds = {tuple(line.split()[2:4]) for line in out.splitlines() if "started" in line}
    assert code == 0 and rates_and_seeds == {("0.001", "0"), ("0.001", "1")}
    assert "made by another version" in next(line for line in out.splitlines() if line.startswith("old"))


@pytest.mark.parametrize(("policy", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(call, monkeypatch, policy, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", "restored afterwards")
    monkeypatch.delenv("OMP_WAIT_POLICY") if policy is None else monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    call("--version")
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_version_and_help(call):
    assert call("--version")[1].startswith("milora 0.")
    code, out, _ = call("-h")
    commands = out.partition("Commands:")[2].splitlines()
    assert code == 0 and len(commands) > 9 and not [line for line in commands if line.endswith("...")]


def test_exports_agree(finished, small_model, call, tmp_path):
    _, run = finished
    for form in ("merged", "residual"):
        code, out, _ = call("export", run, "--as", form, "-o", tmp_path / form)
        assert (code, out.strip()) == (0, str(tmp_path / form))
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    expected = logits_of(milora.load_milora(base, run / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert drift(logits_of(merged), expected) < 1e-5
    residual = AutoModelForCausalLM.from_pretrained(tmp_path / "residual", dtype=torch.float32)
    assert drift(logits_of(PeftModel.from_pretrained(residual, tmp_path / "residual" / "adapter")), expected) < 1e-5
    AutoTokenizer.from_pretrained(tmp_path / "merged")


def test_an_export_for_llama_cpp(finished, call, tmp_path):
    """Its factors are those of the LoRA that the run exported."""
    _, run = finished
    code, out, err = call("export", run, "--as", "gguf")
    assert (code, out.strip()) == (0, str(run / "export" / "gguf" / "adapter.gguf")), err
    _, tensors = read_gguf(out.strip())
    state = load_file(run / "export" / "lora" / "adapter_model.safetensors")
    for factor in "ab":
        exported = state[f"base_model.model.model.layers.1.mlp.up_proj.lora_{factor.upper()}.weight"]
        assert torch.equal(tensors[f"blk.1.ffn_up.weight.lora_{factor}"], exported)
    assert len(tensors) == len(state)
    code, out, err = call("export", run, "--as", "gguf", "--rank", 2, "-o", tmp_path / "few")
    assert code == 0 and read_gguf(out.strip())[1]["blk.0.attn_q.weight.lora_a"].shape[0] == 2, err


def test_lora_is_a_method_too(small_recipe, call, tmp_path):
    overrides = ["adapter.method=lora", "training.max_steps=2", "evaluation.limit=2"]
    code, out, err = call("run", small_recipe, *overrides, "--runs", tmp_path)
    assert code == 0, err
    (run,) = tmp_path.iterdir()
    assert f"exported {run}/export/lora" in out
    exported, trained = (run / folder / "adapter_model.safetensors" for folder in ("export/lora", "adapter"))
    assert exported.read_bytes() == trained.read_bytes()
    code, out, err = call("export", run, "--as", "gguf")
    assert code == 0 and len(read_gguf(out.strip())[1]) == len(load_file(exported)), err


def test_eval_of_other_tasks(finished, call, data_dir):
    _, run = finished
    code, out, err = call("eval", run, "--tasks", "gsm8k,arc_easy,humaneval", "--limit", "2", "--data-dir", data_dir)
    assert code == 2 and "runs programs that a model wrote" in err
    code, out, err = call(
        *("eval", run, "--tasks", "gsm8k,arc_easy", "--limit", "2", "--max-new-tokens", "8"),
        *("--data-dir", data_dir, "--baseline"),
    )
    assert code == 0, err
    assert "gsm8k" in out and "arc_easy" in out and "official" in out


def test_launchers_have_configurations(call):
    code, out, _ = call("launcher", "zero2")
    assert code == 0 and "zero_stage: 2" in Path(out.strip()).read_text()
    code, _, err = call("launcher", "zero4")
    assert code == 2 and "choose ddp, fsdp2, zero2, zero3" in err


def test_ls_and_show(call):
    code, out, _ = call("ls")
    assert code == 0 and "quickstart" in out
    code, out, _ = call("show", "quickstart", "adapter.rank=3")
    assert code == 0 and "rank: 3" in out


BAD = [
    (("show", "quickstart", "training.learning_rat=1"), "did you mean learning_rate?"),
    (("show", "nothing"), "there is no recipe 'nothing'"),
    (("train", "RECIPE", "adapter.target_modules=[q_prj]"), "it has down_proj, gate_proj, k_proj"),
    (("train", "RECIPE", "adapter.target_modules=.*q_prj"), "the expression matches no linear layer"),
    (("train", "RECIPE", "training.report_to=tensorbord"), "training.report_to=tensorbord is not a tracker"),
    (("train", "RECIPE", "training.report_to=clearml"), "training.report_to=clearml: the library is not installed"),
    (("eval", "RUN", "training.epochs=2"), "training is not a key"),
    (("eval", "RUN", "evaluation.limt=2"), "did you mean limit?"),
    (("eval", "RUN", "--limit", "0"), "evaluation.limit: Input should be greater than 0"),
    (("export", "RUN/checkpoints/checkpoint-3"), "is not a run directory"),
    (("compare", "quickstart", "--on", "x"), "Invalid value for '--on': 'x' is not one of 'local', 'ray'"),
    (("train", "RECIPE", "--nonsense"), "No such option: --nonsense"),
    (("init", "EMPTY", "-o", "out", "--targets", "q_proj"), "name a hub model, a local folder with config.json"),
    (("init", "models/lama", "-o", "out"), "did you mean llama?"),
    (("train", "RECIPE", "model.name=models/lama"), "did you mean llama?"),
    (("train", "RECIPE", "adapter.rank=200"), "2 × k_proj: rank 200 is above 192"),
    (("train", "RECIPE", "data.name=none.jsonl"), "the file does not exist"),
    (("train", "RECIPE", "data.name=gsm9k"), "did you mean gsm8k?"),
    (("train", "RECIPE", "model.name=/nowhere"), "cannot be loaded"),
    (
        ("train", "RECIPE", "model.name=/nowhere", "adapter.target_modules=[q_proj]"),
        "model '/nowhere' cannot be loaded",
    ),
    (("run", "RECIPE", "evaluation.tasks=[gsm9k]"), "there is no task gsm9k"),
    (("eval", "/nowhere"), "name --tasks"),
    (("eval", "/nowhere", "--tasks", "arithmetic"), "model '/nowhere' cannot be loaded"),
    (("eval", "RUN", "--tasks", "gsm9k"), "there is no task gsm9k"),
    (("eval", "RUN", "--backend", "server"), "a server needs its url"),
    (("export", "RUN", "--as", "lora", "--rank", "99"), "rank=99 is outside 1 … 8"),
    (("export", "RUN", "--as", "gguf", "--rank", "99"), "rank=99 is outside 1 … 8"),
    (("export", "RUN", "--as", "merged", "--rank", "2"), "--rank 2 recompresses a LoRA"),
    (("export", "RUN", "--as", "ggml"), "is not one of 'lora', 'gguf', 'merged', 'residual'"),
    (("eval", "RUN", "--tasks", "gsm8k", "--data-dir", "/nowhere"), "does not exist"),
    (("train", "RECIPE", "--runs", "/dev/null/runs"), "Not a directory"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[row[1] for row in BAD])
def test_bad_input(finished, small_recipe, call, tmp_path, arguments, message):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    names = {"RECIPE": small_recipe, "RUN": finished[1], "EMPTY": tmp_path / "empty"}
    arguments = [names.get(argument, argument) for argument in arguments]
    if arguments[0] in ("train", "run") and "--runs" not in arguments:
        arguments += ["--runs", "new/runs"]
    code, _, err = call(*arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(lines) == 2 and message in " ".join(lines)
    assert "Traceback" not in err and not Path("new").exists()


def test_nothing_to_do_is_help(call):
    code, out, _ = call()
    assert code == 0 and "Commands:" in out


@pytest.mark.parametrize("command", [("compare", "quickstrat"), ("run", "quikstart"), ("train", "quickstart", "sed=1")])
def test_a_mistyped_name_is_said_before_torch_is_imported(command):
    code = "import sys\nfrom milora.__main__ import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean" in done.stderr


def test_a_log_has_no_progress_bars_of_libraries():
    code = "from milora.__main__ import main\ntry: main()\nfinally:\n from tqdm.auto import tqdm\n list(tqdm([1, 2]))"
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_keys_of_an_evaluation(finished, call):
    _, run = finished
    code, out, err = call("eval", run, "evaluation.limit=3", "evaluation.tasks=arithmetic", "--max-new-tokens", 4)
    assert code == 0, err
    assert "arithmetic" in out and len(list((run / "evaluation" / "trained" / "arithmetic").iterdir())) >= 2


def test_what_others_wrote_down_comes_back_to_the_same_run(finished, call, small_recipe):
    """`milora show`, the run's own recipe, and its report."""
    _, run = finished
    code, out, _ = call("show", small_recipe)
    assert code == 0
    Path("shown.yaml").write_text(out)
    page = (run / "report.html").read_text()
    Path("reported.yaml").write_text(
        html.unescape(page.rpartition("<pre ")[2].partition(">")[2].partition("</pre>")[0])
    )
    for recipe in ("shown.yaml", "reported.yaml", str(run / "recipe.yaml")):
        assert locate(load_recipe(recipe), run.parent).path == run


def test_a_disk_that_becomes_full(small_recipe, small_model, call, monkeypatch, tmp_path):
    def fill(self, args, state, control, **_):
        if state.global_step == 4:
            raise OSError(28, "No space left on device")
        return mark(self, args, state, control)

    mark = CompletionMark.on_save
    train = ("train", small_recipe, "training.max_steps=4", "--runs", tmp_path / "runs")
    with monkeypatch.context() as patched:
        patched.setattr(CompletionMark, "on_save", fill)
        code, _, err = call(*train)
    assert code == 2 and "No space left on device" in err and "it resumes" in err
    (run,) = (tmp_path / "runs").iterdir()
    checkpoint = run / "checkpoints" / "checkpoint-2"
    code, _, err = call("export", run)
    assert code == 2 and "is not trained yet" in err
    code, _, err = call("export", checkpoint.with_name("checkpoint-4"))
    assert code == 2 and "is not a whole checkpoint" in err
    code, out, err = call("export", checkpoint)
    assert (code, out.strip()) == (0, str(run / "export" / "lora-checkpoint-2")), err
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    exported = logits_of(PeftModel.from_pretrained(base, out.strip()))
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    assert drift(exported, logits_of(milora.load_milora(base, checkpoint))) < 1e-5
    code, _, err = call(*train)
    assert code == 0 and json.loads((run / "training.json").read_text())["resumed_at"] == 2, err


FAILURES = [
    (OSError(28, "No space left on device", "x"), "No space left on device: x", "get some free disk space"),
    (PermissionError(13, "Permission denied", "x"), "Permission denied: x", "check the permissions"),
    (FileNotFoundError(2, "No such file or directory", "x"), "No such file or directory: x", "check the path"),
    (ConnectionError("unreachable"), "unreachable", "check the network"),
    (ModuleNotFoundError("No module named 'ray'", name="ray"), "No module named 'ray'", "pip install 'milora[ray]'"),
    (ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval"), "lm_eval", "pip install 'milora[eval]'"),
    (ModuleNotFoundError("No module named 'awq.x'", name="awq.x"), "awq.x", "pip install awq"),
    (ImportError("GPTQ needs\n  optimum"), "GPTQ needs optimum", "install the package that the message names"),
]


@pytest.mark.parametrize(("error", "message", "hint"), FAILURES, ids=[row[1] for row in FAILURES])
def test_what_the_system_refuses_has_a_hint_of_its_own(call, monkeypatch, error, message, hint):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli.lists, "load_recipe", fail)
    code, _, err = call("show", "quickstart")
    first, second = err.splitlines()
    assert code == 2 and first.startswith("error: ") and message in first and second.startswith(f"hint: {hint}")


def test_wrong_columns(small_recipe, call, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "reply": "2"}\n' * 20)
    code, _, err = call("train", small_recipe, f"data.name={tmp_path}/rows.jsonl", "--runs", tmp_path)
    assert code == 2 and "there are prompt, reply" in err


def test_a_full_disk(small_recipe, call, tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        code, _, err = call("train", small_recipe, "--runs", tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert code == 2 and "free disk space" in err and "Traceback" not in err


def test_two_processes_on_one_run(finished, small_recipe, call):
    import fcntl

    _, run = finished
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = call("run", small_recipe, "--runs", run.parent)
    assert code == 2 and "another process" in err


def test_windows_is_told_in_a_sentence(call, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    code, _, err = call("ls")
    assert (code, err) == (
        2,
        "error: the commands of milora run on Linux and macOS\nhint: on Windows, run them in WSL\n",
    )


def test_windows_reaches_that_sentence():
    """Nothing that is imported before it is there only on POSIX systems."""
    blocked = (
        "import sys; sys.modules.update(fcntl=None, resource=None, termios=None, pwd=None); import milora.__main__"
    )
    subprocess.run([sys.executable, "-c", blocked], check=True)
