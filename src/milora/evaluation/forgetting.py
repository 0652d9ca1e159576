"""A trained run → forgetting.json: how far its predictions went from the true base's."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from milora.evaluation.target import target_of_run
from milora.method.analysis import measure_forgetting
from milora.method.errors import MiloraError
from milora.run.directory import RunDirectory
from milora.run.launch import processes
from milora.models.base import load_model, load_tokenizer
from milora.run.recipe import ForgettingSection

FORGETTING = "forgetting.json"


def forget(run: RunDirectory) -> None:
    """Measure a trained run's forgetting, if its recipe asks for it, once.

    Raises:
        MiloraError: the run is not trained, or its text cannot be read or is too short.
    """
    section = run.recipe.evaluation.forgetting
    if not section.blocks or (run.path / FORGETTING).is_file():
        return
    device = processes().device
    tuned = target_of_run(run).load().to(device)
    separate = None
    if run.recipe.adapter.base == "residual" or run.recipe.adapter.method == "full":
        separate = load_model(run.recipe.model).to(device)
    blocks = _make_blocks(section, tuned, separate, load_tokenizer(run.recipe.model)).to(device)
    found = measure_forgetting(tuned, blocks, separate)
    # Runs are comparable where this is equal.
    digest = hashlib.sha256(str(blocks.tolist()).encode()).hexdigest()[:16]
    run.write(FORGETTING, {**asdict(found), "text": section.text, "text_sha256": digest})


def check_text(section: ForgettingSection) -> None:
    """Raise unless the text that forgetting is measured on is there: before training is paid for."""
    if section.blocks and section.text != "sampled" and not Path(section.text).is_file():
        raise MiloraError(
            f"evaluation.forgetting.text={section.text}: there is no such file",
            "name a text file, or `sampled` for text that the base model itself makes",
        )


def _make_blocks(
    section: ForgettingSection,
    tuned: PreTrainedModel | PeftModel,
    separate: PreTrainedModel | None,
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
            f"{section.text} has {len(tokens)} tokens, and {section.blocks} blocks of {section.block_length} are asked",
            "lower evaluation.forgetting.blocks, or name a longer text",
        )
    return torch.tensor(tokens[:needed]).view(section.blocks, section.block_length)


def _sample_blocks(
    section: ForgettingSection, base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Text that the base itself makes, from its whole distribution: what it knew, with no data at all."""
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
