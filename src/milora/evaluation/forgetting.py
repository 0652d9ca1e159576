"""How far a tuned model's predictions are from its base's (paper, section 6 and table 8, after Kalajdzievski 2024)."""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from milora.evaluation.generation.neutral import ends_of, neutralize
from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, measure_grades
from milora.evaluation.target import Target
from milora.method.errors import MiloraError
from milora.models.base import stored_rows
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
    elif target.adapter and stored_rows(cast(PreTrainedModel, tuned.get_base_model()), target.adapter) is not None:
        raise MiloraError(
            f"{target.adapter} contains embeddings of its own: forgetting compares predictions over one vocabulary",
            "leave evaluation.forgetting out",
        )
    tokenizer = target.load_tokenizer()
    blocks = _make_blocks(section, tuned, separate, tokenizer).to(device)
    samples = []
    for block in blocks:
        found = _measure_block(tuned, block, separate)
        grades = {name: Grade(None, value) for name, value in found.items()}
        samples.append(Sample(str(tokenizer.decode(block)), "", "", grades))
    return measure_grades(samples), samples


def check_text(section: ForgettingSection, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
    """Raise unless there is text for all blocks, and a block fits: before training is paid for."""
    if not section.blocks:
        return
    if context is not None and section.block_length > context:
        raise MiloraError(
            f"evaluation.forgetting.block_length={section.block_length} is longer than the model's context of "
            f"{context} tokens",
            f"set evaluation.forgetting.block_length={context} or less",
        )
    if section.text != "sampled":
        _read_blocks(section, tokenizer)


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
    try:
        text = Path(section.text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MiloraError(
            f"evaluation.forgetting.text={section.text}: {_say(error)}",
            "name a text file in UTF-8, or `sampled` for text that the base model itself generates",
        ) from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    needed = section.blocks * section.block_length
    if len(tokens) < needed:
        raise MiloraError(
            f"{section.text} has {len(tokens)} tokens, fewer than {section.blocks} blocks of {section.block_length}",
            "lower evaluation.forgetting.blocks, or name a longer text",
        )
    return torch.tensor(tokens[:needed]).view(section.blocks, section.block_length)


def _say(error: OSError | UnicodeDecodeError) -> str:
    return "the file does not exist" if isinstance(error, FileNotFoundError) else f"the file cannot be read: {error}"


def _sample_blocks(
    section: ForgettingSection, base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Text that the base itself generates, from its whole distribution: what it knew, with no data at all."""
    set_seed(0)  # not the run's: all runs of a comparison read the same text
    neutralize(base, ends_of(base, tokenizer))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = torch.full((section.blocks, 1), start, device=base.device)
    return base.generate(  # type: ignore[operator, no-any-return]
        input_ids=first,
        attention_mask=torch.ones_like(first),
        do_sample=True,
        top_k=0,
        min_new_tokens=section.block_length - 1,
        max_new_tokens=section.block_length - 1,
        pad_token_id=tokenizer.pad_token_id,
    )
