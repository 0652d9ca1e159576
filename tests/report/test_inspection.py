"""`milora inspect` from the command line: what it prints and writes, and what it refuses."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import milora
from milora.evaluation.conditions import locate, settings_of
from milora.evaluation.forgetting import CROSS_ENTROPY, FLOOR, FORGETTING
from milora.evaluation.scores import Metric, Scores, write_scores
from milora.evaluation.target import resolve_target, target_of_run
from milora.report.inspection import choose_folder
from milora.run.directory import RunDirectory
from milora.run.environment import describe_environment
from milora.run.recipe import load_recipe
from milora.run.sections import EvaluationSection
from tests.conftest import add_milora, train_briefly
from tests.made_runs import make_run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def adapters(small_model, tmp_path_factory):
    """A LoRA, a MiLoRA adapter, and what that exports, of rank 4 and 8, on the embedded model's first two layers."""
    folder = tmp_path_factory.mktemp("inspected")

    def load():
        return AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)

    torch.manual_seed(0)
    targets = ["q_proj", "down_proj"]
    train_briefly(get_peft_model(load(), LoraConfig(r=4, target_modules=targets))).save_pretrained(folder / "lora")
    tuned = train_briefly(add_milora(load(), r=4, target_modules=targets))
    tuned.save_pretrained(folder / "milora")
    milora.save_milora_as_lora(folder / "exported", tuned)
    return folder


def _score_forgetting(adapter, nats):
    """As `milora eval` leaves it in the current folder."""
    target = resolve_target(str(adapter), "float32")
    settings = settings_of(target, FORGETTING, EvaluationSection())
    metrics = {CROSS_ENTROPY: Metric(nats, None), FLOOR: Metric(0.5, None)}
    scores = Scores(FORGETTING, "trained", 8, CROSS_ENTROPY, metrics, settings, describe_environment(), unit="nats")
    write_scores(locate(target, FORGETTING, settings), scores, [])


@pytest.mark.slow
def test_adapters_are_inspected_side_by_side(adapters, call, tmp_path):
    (tmp_path / "text.txt").write_text("What a weight does to a text is what it does to its own hidden states. " * 60)
    options = ("--dtype", "float32", "--text", tmp_path / "text.txt")
    for name, nats in (("lora", 0.75), ("milora", 0.625)):
        _score_forgetting(adapters / name, nats)
    code, out, error = call("inspect", adapters / "lora", adapters / "milora", *options)
    assert code == 0, error
    assert "Amplification, median over weights: lowest for" in out and "table 7 of the paper" in out
    page = tmp_path / "inspections" / "lora+milora" / "index.html"
    assert f"page     {page.relative_to(tmp_path)}" in out
    text = page.read_text()
    assert text.count("<figure>") == 15 and "http" not in text.partition("</style>")[0]
    found = json.loads(page.with_name("inspection.json").read_text())
    assert [one["name"] for one in found["adapters"]] == ["lora", "milora"] and len(found["weights"]) == 4
    for one in found["adapters"]:
        for weight in one["weights"].values():
            assert weight["amplification"] == pytest.approx(weight["update_in_own"] / weight["in_update"], rel=1e-4)
        assert one["activity"].keys() == one["weights"].keys() and one["norm"] > 0
    lora, tuned = found["adapters"]
    assert [one["forgetting"]["cross_entropy"] for one in (lora, tuned)] == [0.75, 0.625]
    assert "0.625 (0.500)" in out and "‖ΔW‖ against forgetting" in text
    for name, weight in tuned["weights"].items():  # MiLoRA's update lies where it started
        assert weight["similarity"]["bottom"] > 3 * lora["weights"][name]["similarity"]["bottom"]

    code, out, error = call("inspect", adapters / "exported", "--rank", 4, "--json", *options, "-o", "there")
    exported = json.loads(out)["adapters"][0]
    assert (tmp_path / "there" / "index.html").is_file() and "page" in error
    assert exported["norm"] == pytest.approx(tuned["norm"], rel=1e-4)  # one update in two forms
    for name, weight in tuned["weights"].items():
        assert exported["weights"][name]["amplification"] == pytest.approx(weight["amplification"], rel=1e-3)


@pytest.mark.slow
def test_a_model_is_inspected(small_model, call):
    code, out, error = call("inspect", small_model, "--json")
    assert code == 0, error
    found = json.loads(out)
    assert len(found["weights"]) == 14 and not found["adapters"]  # seven in each of two layers, without the head
    weight = found["weights"]["model.layers.0.self_attn.q_proj"]
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    values = torch.linalg.svdvals(model.get_submodule("model.layers.0.self_attn.q_proj").weight.double())
    assert weight["values"] == pytest.approx(values.tolist(), rel=1e-5) and weight["rank"] == 64
    assert weight["condition"] == pytest.approx((values[0] / values[-1]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["lora", "exported"], [], r"the adapters have different ranks \(lora 4, exported 8\)"),
        (["lora", "lora"], [], "is named twice"),
        (["lora", "MODEL"], [], "is a model, which is inspected alone"),
        (["lora"], ["--text", "nowhere.txt"], "the file does not exist"),
        (["lora"], ["--rank", "0"], "greater than or equal to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.slow
def test_what_does_not_go_together_is_refused(adapters, small_model, call, targets, options, message):
    named = [small_model if target == "MODEL" else adapters / target for target in targets]
    code, out, error = call("inspect", *named, "--dtype", "float32", *options)
    assert code == 2 and not out and re.search(message, error), error
    assert len(re.findall(r"^(error|hint): ", error, re.M)) == 2 and "Traceback" not in error


def test_a_run_alone_is_inspected_in_its_directory(tmp_path):
    run = make_run(RunDirectory(tmp_path / "runs" / "quickstart-0", load_recipe("quickstart")))
    target = target_of_run(run)
    assert choose_folder([target]) == run.path / "inspection"
    assert choose_folder([target, target]).as_posix() == "inspections/quickstart-0+quickstart-0"
