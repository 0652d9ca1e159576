"""Tasks of lm-evaluation-harness: what is refused before training, and that each kind runs to the report."""

import json
import math
import shutil

import pytest

from milora import MiloraError
from milora.evaluation.check import check_evaluation
from milora.evaluation.evaluate import evaluate, locate_samples
from milora.evaluation.scores import read_samples
from milora.evaluation.target import Target, resolve_target
from milora.run.recipe import load_recipe
from milora.run.sections import EvaluationSection

ROWS = [
    {"text": "2 + 2 =", "choices": [" 4", " 5"], "gold": 0, "answer": " 4"},
    {"text": "The sky is", "choices": [" blue", " two"], "gold": 0, "answer": " blue"},
    {"text": "One two three", "choices": [" four", " sky"], "gold": 0, "answer": " four"},
]
KINDS = {
    "choices": """output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "generation": """output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "rolling": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture
def task(tmp_path):
    """A function that writes a task of a kind, and returns its file."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def write(kind, **changes):
        text = f"""task: tiny-{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {changes.pop("data", tmp_path / "rows.jsonl")}}}}}
test_split: test
fewshot_split: test
{KINDS[kind]}"""
        for old, new in changes.pop("replace", {}).items():
            text = text.replace(old, new)
        file = tmp_path / f"tiny-{kind}.yaml"
        file.write_text(text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in changes.items()))
        return str(file)

    return write


def _section(*tasks, **options):
    return EvaluationSection(tasks=list(tasks), **options)


def test_run_goes_through_with_every_kind(task, small_recipe, call, tmp_path):
    tasks = ",".join(task(kind) for kind in KINDS)
    options = [f"evaluation.tasks=[{tasks}]", "training.max_steps=1", "adapter.method=lora"]
    code, out, err = call("run", small_recipe, *options, "--runs", tmp_path / "runs")
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    page = (run / "report.html").read_text()
    for kind in KINDS:
        assert f"tiny-{kind}" in out and f"tiny-{kind}" in page


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_samples_agree_with_the_metric(kind, task, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target, section = resolve_target(str(small_model), "float32"), _section(task(kind), limit=2)
    (scores,) = evaluate(target, section)
    (folder,) = locate_samples(target, f"tiny-{kind}", section)
    samples = read_samples(folder)
    assert scores.count == len(samples) == 2 and scores.unfit == 0 and scores.task == f"tiny-{kind}"
    assert scores.primary == {"choices": "acc", "generation": "exact_match", "rolling": "word_perplexity"}[kind]
    if kind == "rolling":
        assert scores.unit == "number" and scores.headline.value > 1
    else:
        assert scores.headline.value == sum(sample.grades[scores.primary].score for sample in samples) / 2


@pytest.mark.slow
def test_options_for_chat_models_are_passed_on_and_scored_apart(task, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, target = task("generation"), resolve_target(str(small_model), "float32")
    asked = {}
    for options in ({}, {"num_fewshot": 1}, {"apply_chat_template": True}):
        section = _section(name, limit=1, **options)
        evaluate(target, section)
        (folder,) = locate_samples(target, "tiny-generation", section)
        (asked[str(options)],) = [sample.question for sample in read_samples(folder)]
    plain, shots, chat = asked.values()
    assert plain == "2 + 2 =" and shots != plain and shots.endswith(plain)
    assert chat.startswith("<|im_start|>") and plain in chat and chat.endswith("<|im_start|>assistant\n")


def test_a_prompt_that_the_harness_cuts_is_counted(task, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    target = resolve_target(str(tmp_path / "model"), "float32")
    long = task("generation", replace={'"{{text}}"': '"{{text * 9}}"'})
    (scores,) = evaluate(target, _section(long, limit=1))
    assert scores.unfit == 1


REFUSED = [
    ({"unsafe_code": True}, {}, "runs programs which a model wrote on this machine, without milora's sandbox"),
    ({"data": "/nowhere.jsonl"}, {}, "task .*tiny-generation.yaml cannot be loaded: FileNotFoundError"),
    ({"replace": {"{{text}}": "{{text | nonsense}}"}}, {}, "cannot be loaded: TemplateAssertionError"),
    ({"nonsense": 1}, {}, "cannot be loaded: TypeError"),
    ({"replace": {"max_gen_toks: 6": "max_gen_toks: 9000"}}, {}, "asks for 9000 new tokens, and .* context is 8192"),
    ({}, {"backend": "server", "url": "http://127.0.0.1:9/v1"}, "runs here with backend=hf"),
]


@pytest.mark.parametrize(("changes", "options", "message"), REFUSED, ids=[row[2][:30] for row in REFUSED])
def test_refused_before_anything_is_loaded(task, small_recipe, small_model, monkeypatch, changes, options, message):
    section = _section(task("generation", **changes), **options)
    recipe = load_recipe(small_recipe).model_copy(update={"evaluation": section})
    with pytest.raises(MiloraError, match=message):
        check_evaluation(recipe)
    monkeypatch.setattr(Target, "load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(MiloraError, match=message):
        evaluate(resolve_target(str(small_model), "float32"), section)


def test_a_task_that_runs_code_runs_if_it_may(task, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = _section(task("generation", unsafe_code=True), limit=1, allow_code_execution=True)
    (scores,) = evaluate(resolve_target(str(small_model), "float32"), section)
    assert math.isfinite(scores.headline.value)


def test_a_named_task_that_runs_code_is_refused_without_its_data(small_recipe):
    recipe = load_recipe(small_recipe).model_copy(update={"evaluation": _section("humaneval_instruct")})
    with pytest.raises(MiloraError, match="humaneval_instruct is a task of lm-eval that runs programs"):
        check_evaluation(recipe)


FORGETTING = [
    ({"text": "/nowhere.txt"}, "the file does not exist"),
    ({"text": "LATIN"}, "the file cannot be read"),
    ({"text": "SHORT"}, "fewer than 2 blocks"),
    ({"block_length": 9000}, "longer than the model's context of 8192"),
]


@pytest.mark.parametrize(("options", "message"), FORGETTING, ids=[row[1] for row in FORGETTING])
def test_the_text_of_forgetting_is_checked_before_training(small_recipe, tmp_path, options, message):
    (tmp_path / "LATIN").write_bytes("é".encode("latin-1"))
    (tmp_path / "SHORT").write_text("a few words")
    text = options.get("text", "sampled")
    if (tmp_path / text).is_file():
        text = str(tmp_path / text)
    settings = {"tasks": ["forgetting"], "forgetting": {"block_count": 2, **options, "text": text}}
    section = EvaluationSection.model_validate(settings)
    with pytest.raises(MiloraError, match=message):
        check_evaluation(load_recipe(small_recipe).model_copy(update={"evaluation": section}))
