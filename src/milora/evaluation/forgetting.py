"""How far a tuned model's predictions are from its base's (paper, section 6 and table 8, after Kalajdzievski 2024)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, measure_grades
from milora.evaluation.target import Target
from milora.method.errors import MiloraError
from milora.models.base import load_tokenizer
from milora.run.launch import processes
from milora.run.recipe import ForgettingSection

FORGETTING = "forgetting"
CROSS_ENTROPY, FLOOR = "cross_entropy", "floor"


def score_forgetting(target: Target, section: ForgettingSection) -> tuple[dict[str, Metric], list[Sample]]:
    """Return cross-entropy and floor in nats per token, and those of every block of text.

        cross_entropy = −Σ_v p_base(v) log p_tuned(v),  floor = −Σ_v p_base(v) log p_base(v),  averaged over positions

    The floor is the base's own entropy, which a model that forgot nothing reaches.

    Raises:
        MiloraError: the text cannot be read, or is too short.
    """
    device = processes().device
    tuned = target.load().to(device)
    separate = None
    if not isinstance(tuned, PeftModel) or target.form == "residual":
        separate = target.base.load().to(device)  # disable_adapter() is not the base there
    tokenizer = load_tokenizer(target.model)
    blocks = _make_blocks(section, tuned, separate, tokenizer).to(device)
    samples = []
    for block in blocks:
        found = _measure_block(tuned, block, separate)
        grades = {name: Grade(None, value) for name, value in found.items()}
        samples.append(Sample(str(tokenizer.decode(block)), "", "", grades))
    return measure_grades(samples), samples


def check_text(section: ForgettingSection) -> None:
    """Raise unless the text that forgetting is measured on exists: before training is paid for."""
    if section.blocks and section.text != "sampled" and not Path(section.text).is_file():
        raise MiloraError(
            f"evaluation.forgetting.text={section.text}: the file does not exist",
            "name a text file, or `sampled` for text that the base model itself generates",
        )


@torch.no_grad()
def _measure_block(model: PreTrainedModel | PeftModel, block: Tensor, base: nn.Module | None) -> dict[str, float]:
    """`block` are token ids `(length,)`; without `base`, the model's adapter is disabled to get it."""
    tuned = F.log_softmax(model(block[None]).logits[0].float(), dim=-1)
    if base is None:
        assert isinstance(model, PeftModel)
        with model.disable_adapter():
            logits = model(block[None]).logits[0]
    else:
        logits = base(block[None]).logits[0]
    expected = F.log_softmax(logits.float(), dim=-1)
    return {
        CROSS_ENTROPY: -float((expected.exp() * tuned).sum(-1).mean()),
        FLOOR: -float((expected.exp() * expected).sum(-1).mean()),
    }


def _make_blocks(
    section: ForgettingSection,
    tuned: PreTrainedModel | PeftModel,
    separate: PreTrainedModel | PeftModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Tensor:
    if section.text != "sampled":
        return _read_blocks(section, tokenizer)
    if separate is not None:
        return _sample_blocks(section, separate, tokenizer)
    assert isinstance(tuned, PeftModel)
    with tuned.disable_adapter():
        return _sample_blocks(section, tuned, tokenizer)


def _read_blocks(section: ForgettingSection, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    text = Path(section.text).read_text(encoding="utf-8")
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    needed = section.blocks * section.block_length
    if len(tokens) < needed:
        raise MiloraError(
            f"{section.text} has {len(tokens)} tokens, fewer than {section.blocks} blocks of {section.block_length}",
            "lower evaluation.forgetting.blocks, or name a longer text",
        )
    return torch.tensor(tokens[:needed]).view(section.blocks, section.block_length)


def _sample_blocks(
    section: ForgettingSection, base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Text that the base itself generates, from its whole distribution: what it knew, with no data at all."""
    set_seed(0)  # not the run's: all runs of a comparison read the same text
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = torch.full((section.blocks, 1), start, device=base.device)
    return base.generate(  # type: ignore[operator, no-any-return]
        input_ids=first,
        attention_mask=torch.ones_like(first),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        min_new_tokens=section.block_length - 1,
        max_new_tokens=section.block_length - 1,
        pad_token_id=tokenizer.pad_token_id,
    )
