"""Benchmarks about pictures from end to end: tiny models that see answer through `milora eval`."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from milora import MiloraError, initialize_lora_milora_weights
from milora.data.picture_rows import SHORT, UNANSWERABLE
from milora.evaluation.benchmarks import BENCHMARKS
from milora.evaluation.check import check_evaluation, check_tasks
from milora.evaluation.conditions import settings_of, template_of
from milora.evaluation.evaluate import evaluate, locate_samples
from milora.evaluation.posing import choose_prompt, pictures_of
from milora.evaluation.scores import read_samples
from milora.evaluation.target import resolve_target
from milora.models.base import load_model, load_tokenizer
from milora.models.vision import load_processor
from milora.run.recipe import Recipe
from milora.run.sections import EvaluationSection, ModelSection
from tests.pictures import draw

SIZES = {"red": (40, 24), "blue": (24, 64), "green": (32, 32)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """VizWiz's validation split, of three pictures of other sizes; the working folder is another one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = tmp_path / "data/vizwiz/val"
    pictures.mkdir(parents=True)
    rows = []
    for color, size in SIZES.items():
        draw(pictures / f"{color}.png", color, size)
        answers = [{"answer": color}] * 10
        rows.append({"image": f"{color}.png", "question": "Which?", "answers": answers, "answer_type": "other"})
    (tmp_path / "data/vizwiz/val.json").write_text(json.dumps(rows))
    (tmp_path / "data/scienceqa/images/test/1").mkdir(parents=True)
    draw(tmp_path / "data/scienceqa/images/test/1/image.png", "red", (30, 30))
    asked = [{"id": "1", "image": "1/image.png"}, {"id": "2"}]
    for row in asked:
        question = "<image>\nWhich?\nA. a\nB. b" if "image" in row else "Which?\nA. a\nB. b"
        row["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": "A"}]
    (tmp_path / "data/scienceqa/llava_test_CQM-A.json").write_text(json.dumps(asked))
    return tmp_path / "data"


@pytest.fixture(params=["tiny_llava", "tiny_qwen_vl"])
def model(request):
    return str(request.getfixturevalue(request.param))


def _section(folder, task="vizwiz", **options):
    return EvaluationSection(tasks=[task], data_dir=str(folder), max_new_tokens=5, **options)


def _score(model, section):
    target = resolve_target(model, "float32")
    (scores,) = evaluate(target, section)
    (stored,) = locate_samples(target, section.tasks[0], section)
    return scores, read_samples(stored)


def _answer_alone(name, model, sample):
    """What transformers' own processor and `generate` say to one question without a batch."""
    processor = load_processor(ModelSection(name=name, dtype="float32"))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[Image.open(sample.images[0])], text=[text], return_tensors="pt")
    ends = [processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=ends, pad_token_id=0)
    return processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_pictures_are_asked_about_as_transformers_asks(model, folder):
    scores, samples = _score(model, _section(folder))
    assert [Path(sample.images[0]).name for sample in samples] == ["red.png", "blue.png", "green.png"]
    assert samples[0].question == f"Which?{UNANSWERABLE}{SHORT}" and samples[0].gold == "red"
    alone = load_model(ModelSection(name=model, dtype="float32"))
    assert [sample.completion for sample in samples] == [_answer_alone(model, alone, sample) for sample in samples]
    assert scores.primary == "accuracy" and scores.count == 3
    again, _ = _score(model, _section(folder))
    assert again == scores


@pytest.mark.slow
def test_a_trained_adapter_sees_as_in_training(tiny_llava, folder, tmp_path):
    name = str(tiny_llava)
    base = load_model(ModelSection(name=name, dtype="float32"))
    base.name_or_path = name
    config = LoraConfig(r=4, lora_alpha=4, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    model = get_peft_model(base, config)
    initialize_lora_milora_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 20)
    model.save_pretrained(tmp_path / "adapter")
    _, samples = _score(str(tmp_path / "adapter"), _section(folder))
    _, before = _score(name, _section(folder))
    answers = [sample.completion for sample in samples]
    assert answers == [_answer_alone(name, model.eval(), sample) for sample in samples]
    assert answers != [sample.completion for sample in before]


@pytest.mark.slow
def test_a_blind_benchmark_shows_blank_pictures_of_the_same_sizes(tiny_qwen_vl, folder):
    seeing, _ = _score(str(tiny_qwen_vl), _section(folder))
    blind, samples = _score(str(tiny_qwen_vl), _section(folder, "vizwiz_blind"))
    assert (seeing.task, blind.task) == ("vizwiz", "vizwiz_blind")
    for sample, size in zip(samples, SIZES.values(), strict=True):
        picture = Image.open(sample.images[0])
        assert picture.size == size and picture.getcolors() == [(size[0] * size[1], (128, 128, 128))]


def test_llava_can_be_asked_with_llavas_prompt_to_the_byte(tiny_llava, folder):
    section = ModelSection(name=str(tiny_llava))
    tokenizer, pictures = load_tokenizer(section), pictures_of(section)
    benchmark = BENCHMARKS["vizwiz"]
    row = benchmark.load(str(folder))[0]
    name = template_of(None, _section(folder, prompt="vicuna"))
    asked = choose_prompt(benchmark, name, tokenizer, pictures).render(row.prompt)
    assert asked == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions. USER: <image>\n{row.question} ASSISTANT:"
    )
    own = choose_prompt(benchmark, template_of(None, _section(folder)), tokenizer, pictures).render(row.prompt)
    assert own.startswith("<|im_start|>user\n<image>\nWhich?")
    tokenizer.chat_template = None
    assert choose_prompt(benchmark, None, tokenizer, pictures).render(row.prompt) == asked
    target = resolve_target(str(tiny_llava), "float32")
    settings = [settings_of(target, "vizwiz", _section(folder, prompt=name)) for name in ("official", "vicuna", "chat")]
    assert len({one.prompt for one in settings}) == 3


def test_a_changed_picture_is_asked_about_again(tiny_llava, folder):
    target = resolve_target(str(tiny_llava), "float32")
    first = settings_of(target, "vizwiz", _section(folder))
    assert settings_of(target, "vizwiz", _section(folder)) == first
    draw(folder / "vizwiz/val/red.png", "yellow", (99, 77))
    assert settings_of(target, "vizwiz", _section(folder)) != first


@pytest.mark.slow
def test_questions_without_a_picture_beside_others(tiny_llava, folder):
    scores, samples = _score(str(tiny_llava), _section(folder, "scienceqa"))
    assert [len(sample.images) for sample in samples] == [1, 0]
    assert list(scores.metrics) == ["picture", "all"]


@pytest.mark.slow
def test_what_is_refused_before_a_model_is_loaded(small_model, tiny_llava, folder):
    for name in ("vizwiz", "vizwiz_blind"):
        with pytest.raises(MiloraError, match=f"{name} shows pictures, and .* takes text only"):
            _score(str(small_model), _section(folder, name))
    recipe = {"name": "a", "model": {"name": str(small_model)}, "data": {"name": "arithmetic"}}
    with pytest.raises(MiloraError, match="scienceqa shows pictures, and .* takes text only"):
        check_evaluation(Recipe(**recipe, evaluation=_section(folder, "scienceqa")))  # its shortest row has none
    server = {"backend": "server", "url": "http://localhost:1/v1"}
    with pytest.raises(MiloraError, match="pope, mmbench_test shows pictures, and a server is asked with text"):
        check_tasks(EvaluationSection(tasks=["pope", "gsm8k", "mmbench_test"], **server))
    (folder / "vizwiz/val/red.png").unlink()
    (folder / "vizwiz/val/blue.png").write_text("<html>")
    message = r"2 of 3 pictures of vizwiz cannot be used: .*red\.png does not exist; .*blue\.png is not a picture"
    with pytest.raises(MiloraError, match=message):
        _score(str(tiny_llava), _section(folder))


@pytest.mark.slow
def test_through_the_command_line(tiny_llava, folder, call):
    options = ("--data-dir", folder, "--limit", 1, "--dtype", "float32")
    code, out, _ = call("eval", tiny_llava, "--tasks", "scienceqa", *options, "evaluation.max_new_tokens=2")
    assert code == 0 and out.split("\n")[1].startswith("scienceqa       picture              1")
    code, out, err = call("eval", tiny_llava, "--tasks", "vqav2", *options)
    assert (code, out) == (2, "") and len(err.strip().split("\n")) == 2 and "visualqa.org" in err
