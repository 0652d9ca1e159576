"""How far a tuned model's predictions are from its base's (paper, section 6 and table 8, after Kalajdzievski 2024)."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from platformdirs import user_cache_path
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from milora.evaluation.generation.neutral import ends_of, neutralize
from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, measure_grades
from milora.evaluation.target import Target
from milora.method.errors import MiloraError
from milora.method.files import read_json, write_json
from milora.models.base import stored_rows
from milora.run.launch import processes
from milora.run.sections import ForgettingSection

FORGETTING = "forgetting"
CROSS_ENTROPY, FLOOR, PERPLEXITY = "cross_entropy", "floor", "perplexity"
LOSS = "loss"
VERSION = "3"  # changes whenever the measuring does


def score_forgetting(target: Target, section: ForgettingSection) -> tuple[dict[str, Metric], list[Sample]]:
    """Return cross-entropy and floor in nats per token with the perplexity, and those of every block of text.

        cross_entropy = −Σ_v p_base(v) log p_tuned(v),  floor = −Σ_v p_base(v) log p_base(v),  averaged over positions

    The floor is the base's own entropy, which a model that forgot nothing reaches. The perplexity is the target's on
    the text itself.

    Raises:
        MiloraError: the text cannot be read, or is too short.
    """
    tuned, base, as_base = _load_both(target)
    tokenizer = target.load_tokenizer()
    with as_base():
        blocks = make_blocks(section, target.base, base, tokenizer)
    samples = []
    for block in blocks.to(tuned.device):
        found = _predict(tuned, block)
        with as_base():
            expected = found if target.who == "base" else _predict(base, block)
        grades = {name: Grade(None, value) for name, value in _compare(found, expected, block).items()}
        samples.append(Sample(str(tokenizer.decode(block)), "", "", grades))
    metrics = measure_grades(samples)
    loss = metrics.pop(LOSS)
    return {**metrics, PERPLEXITY: _exponentiate(loss)}, samples


def _load_both(
    target: Target,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedModel | PeftModel, Callable[[], AbstractContextManager[None]]]:
    """Return the target's model, its base's, and a context in which the second one is the base: they may be one."""
    device = processes().device
    tuned = target.load().to(device)
    if target.who == "base":
        return tuned, tuned, nullcontext
    if not isinstance(tuned, PeftModel) or target.form == "residual":
        return tuned, target.base.load().to(device), nullcontext  # disable_adapter() is not the base there
    if target.adapter and stored_rows(cast(PreTrainedModel, tuned.get_base_model()), target.adapter) is not None:
        raise MiloraError(
            f"{target.adapter} contains embeddings of its own: forgetting compares predictions over one vocabulary",
            "leave the task forgetting out",
        )
    return tuned, tuned, tuned.disable_adapter


def check_text(section: ForgettingSection, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
    """Raise unless there is text for all blocks, and a block fits: before training is paid for."""
    if context is not None and section.block_length > context:
        raise MiloraError(
            f"evaluation.forgetting.block_length={section.block_length} is longer than the model's context of "
            f"{context} tokens",
            f"set evaluation.forgetting.block_length={context} or less",
        )
    if section.text != "sampled":
        _read_blocks(section, tokenizer)


@torch.no_grad()
def _predict(model: nn.Module, block: Tensor) -> Tensor:
    """Return log-probabilities `(length, vocabulary)` of the token after each of `block` `(length,)`."""
    return F.log_softmax(model(block[None]).logits[0].float(), dim=-1)


def _compare(found: Tensor, expected: Tensor, block: Tensor) -> dict[str, float]:
    return {
        CROSS_ENTROPY: -float((expected.exp() * found).sum(-1).mean()),
        FLOOR: -float((expected.exp() * expected).sum(-1).mean()),
        LOSS: float(F.nll_loss(found[:-1], block[1:])),
    }


def _exponentiate(loss: Metric) -> Metric:
    """The perplexity of a mean loss; its error is that of the loss to first order."""
    value = math.exp(loss.value)
    error = None if loss.standard_error is None else value * loss.standard_error
    ends = None if loss.interval is None else (math.exp(loss.interval[0]), math.exp(loss.interval[1]))
    return Metric(value, error, ends, "number")


def make_blocks(
    section: ForgettingSection, target: Target, base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Return token ids `(blocks, block_length)`: of the text file, or sampled from `base`, the model of `target`.

    What was sampled is kept in the user's cache: the runs of a comparison read the same text.

    Raises:
        MiloraError: the text cannot be read, or is too short.
    """
    if section.text != "sampled":
        return _read_blocks(section, tokenizer)
    name = f"{target.digest}-{VERSION}-{section.block_count}x{section.block_length}.json"
    kept = user_cache_path("milora") / "texts" / name
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, _sample_blocks(section, base, tokenizer).tolist())
    return torch.tensor(read_json(kept))


def _read_blocks(section: ForgettingSection, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    try:
        text = Path(section.text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MiloraError(
            f"evaluation.forgetting.text={section.text}: {_say(error)}",
            "name a text file in UTF-8, or `sampled` for text that the base model itself generates",
        ) from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    needed = section.block_count * section.block_length
    if len(tokens) < needed:
        raise MiloraError(
            f"{section.text} has {len(tokens)} tokens, fewer than {section.block_count} blocks of "
            f"{section.block_length}",
            "lower evaluation.forgetting.block_count, or name a longer text",
        )
    return torch.tensor(tokens[:needed]).view(section.block_count, section.block_length)


def _say(error: OSError | UnicodeDecodeError) -> str:
    return "the file does not exist" if isinstance(error, FileNotFoundError) else f"the file cannot be read: {error}"


def _sample_blocks(
    section: ForgettingSection, base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Text that the base itself generates, from its whole distribution: what it knew, with no data at all."""
    set_seed(0)  # not the run's: all runs of a comparison read the same text
    neutralize(base, ends_of(base, tokenizer))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = torch.full((section.block_count, 1), start, device=base.device)
    return base.generate(  # type: ignore[operator, no-any-return]
        input_ids=first,
        attention_mask=torch.ones_like(first),
        do_sample=True,
        top_k=0,
        min_new_tokens=section.block_length - 1,
        max_new_tokens=section.block_length - 1,
        pad_token_id=tokenizer.pad_token_id,
    )
