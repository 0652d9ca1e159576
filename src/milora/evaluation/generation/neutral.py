"""Generation that nothing but its caller decides."""

from collections.abc import Sequence

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def ends_of(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a text: those that the model's own settings name, and the tokenizer's EOS."""
    config = model.generation_config
    own = config.eos_token_id if config is not None else None  # one, several or none
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in ends if token is not None))


def neutralize(model: PreTrainedModel | PeftModel, ends: Sequence[int]) -> None:
    """Replace the model's own `generation_config` by one that asks for nothing but to stop at `ends`.

    A model may ask for sampling, penalties, forced or forbidden tokens, and lengths: greedy search would not be greedy.
    """
    model.generation_config = GenerationConfig(eos_token_id=list(ends) or None)  # type: ignore[no-untyped-call]
