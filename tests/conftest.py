"""Small real and made models, and the paths that tests share."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import milora
from milora.__main__ import main
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.models.located import resolve_model
from milora.run.sections import ModelSection
from tests.pictures import make_llava, make_qwen_vl
from tests.process import run_milora
from tests.served import LlamaServer, serving

# Whatever trains, starts processes, asks a model for many answers, or decomposes large matrices takes seconds;
# `make check` leaves it out.
SLOW_FIXTURES = {"small_recipe", "recipe", "start", "browser", "llama_server", "checked"}
SLOW_FILES = {
    *("data/test_template_parity.py", "disk/test_conversion.py", "invariants/test_quantized.py"),
    *("invariants/test_same_everywhere.py", "method/test_decomposition.py", "method/test_parity.py"),
    *("method/test_trl.py", "method/test_unsupported.py", "models/test_tokens.py", "tests/test_architectures.py"),
    *("evaluation/test_chat.py", "evaluation/test_evaluate.py", "evaluation/test_harness.py"),
    *("evaluation/test_instruction.py", "evaluation/test_judging.py", "evaluation/test_sandbox.py"),
    *("evaluation/test_server.py", "training/test_pictures_trained.py"),
}


# They take minutes, and a file is the work of one process: started last, one of them is waited for alone.
LONGEST = (
    *(
        "test_compare.py",
        "test_killed.py",
        "test_distributed.py",
        "test_methods.py",
        "test_pictures_trained.py",
        "test_cli.py",
        "test_evaluate.py",
    ),
    *("test_same_everywhere.py", "test_architectures.py", "test_experts.py", "test_trl.py", "test_interrupted.py"),
    *("test_readme.py", "test_wheel.py", "test_quantized.py", "test_killed_init.py", "test_harness.py", "test_chat.py"),
    *("test_decomposition.py", "test_fuzz.py", "test_sandbox.py", "test_unsupported.py", "test_packing.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for item in items:
        file = "/".join(item.path.parts[-2:])
        # A CPU without bfloat16 instructions takes seconds for a few small products.
        is_bfloat16 = "bfloat16" in item.name and file in ("models/test_methods.py", "invariants/test_step_zero.py")
        if is_bfloat16 or file in SLOW_FILES or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported is not garbage: each collection, such as at the end of a training, took a second


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first two layers, real weights, as a folder: no usable language model, but real spectra."""
    folder = tmp_path_factory.mktemp("small") / "model"
    model = AutoModelForCausalLM.from_pretrained(resolve_model(EMBEDDED), num_hidden_layers=2, dtype=torch.float32)
    model.save_pretrained(folder)
    load_tokenizer(ModelSection(name=EMBEDDED)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llava(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava") / "model", small_model)


@pytest.fixture(scope="session")
def tiny_qwen_vl(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen_vl(tmp_path_factory.mktemp("qwen_vl") / "model", small_model)


@pytest.fixture(scope="session")
def llama_server() -> Iterator[LlamaServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def data_dir() -> str:
    folder = os.environ.get("MILORA_TEST_DATA")
    if not folder:
        pytest.skip("MILORA_TEST_DATA names no folder with gsm8k/, mawps/ and commonsense/")
    return folder


@pytest.fixture
def load_whole(small_model: Path) -> Callable[..., PreTrainedModel]:
    """Load the small model as it is in its folder."""
    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(small_model, dtype=dtype)


@pytest.fixture(scope="session")
def few_tokens(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model without most of its embeddings, which are most of its weights and of its work."""
    folder = tmp_path_factory.mktemp("few") / "model"
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    model.resize_token_embeddings(256)  # `some_tokens` draws from 200
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def load_small(few_tokens: Path) -> Callable[..., PreTrainedModel]:
    """Load the small model for tests that need no tokenizer."""
    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(few_tokens, dtype=dtype)


def make_gpt2() -> PreTrainedModel:
    """Conv1D layers: weights stored (in, out), with biases."""
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=200, n_positions=64, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def make_qwen() -> PreTrainedModel:
    """Linear layers with a bias in q, k and v."""
    torch.manual_seed(2)
    config = Qwen2Config(
        num_hidden_layers=2,
        hidden_size=48,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def make_llama(dtype: torch.dtype = torch.float32, tied: bool = False) -> PreTrainedModel:
    """No biases; in bf16 or float64 too, embeddings tied or not."""
    torch.manual_seed(4)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def add_milora(model: PreTrainedModel, *, dropout: float = 0.0, r: int = 8, **options) -> PeftModel:
    """`options` with a `lora_` or pattern name go to LoraConfig, the rest to the initialization."""
    config_keys = {"lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "fan_in_fan_out"}
    config = {key: options.pop(key) for key in list(options) if key in config_keys}
    config.setdefault("target_modules", "all-linear")
    peft_model = get_peft_model(model, LoraConfig(r=r, lora_dropout=dropout, task_type="CAUSAL_LM", **config))
    milora.initialize_lora_milora_weights(peft_model, **options)
    return peft_model


def some_tokens(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    return torch.randint(0, 200, (3, 16), generator=torch.Generator().manual_seed(3))


def logits_of(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(some_tokens(model)).logits


def train_briefly(model: PeftModel, steps: int = 3) -> PeftModel:
    """Real AdamW steps, large enough to move every layer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    tokens = some_tokens(model)
    model.train()
    for _ in range(steps):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def drift(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    found, expected = found.double(), expected.double()
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the CLI in this process and in a folder of the test's own; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["milora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code or 0
        return code, *capsys.readouterr()

    call.folder = tmp_path
    return call


@pytest.fixture(scope="session")
def small_recipe(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The quickstart on two layers, in float32: seconds, every stage real, accuracy of no interest."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        f"""extends: quickstart
name: small
model: {{name: {small_model}, dtype: float32}}
adapter: {{rank: 4, dropout: 0.1}}
data: {{rows: 64, validation_rows: 8}}
training: {{max_steps: 8, batch_size: 4, save_steps: 2}}
evaluation: {{limit: 4, batch_size: 4, max_new_tokens: 8}}
"""
    )
    return str(path)


@pytest.fixture(scope="session")
def finished(
    small_recipe: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One `milora run`, shared; what it printed and where it is."""
    runs = tmp_path_factory.mktemp("runs")
    done = run_milora("run", small_recipe, "--runs", runs)
    assert done.returncode == 0, done.stderr
    (run,) = runs.iterdir()
    return done, run
