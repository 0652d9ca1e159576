"""lm-eval's model in this process, with faster generation.

All private API of lm-eval and of transformers' generation that milora uses is in this file, and tests/test_seams.py
asserts it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from milora.data.processor import Pictures
from milora.evaluation.generation.request import Completion, Decoding

STRIDE = 16  # tokens between two checks for finished rows


class Generator(HFLM):
    """Computes the keys and values of a prompt once for all beams, and removes finished rows from the batch.

    The completions are those of one `generate` call on the whole batch, up to the rounding of other batch sizes. That
    call is still used for sampling, for prompts with pictures, and for models with a recurrent state instead of keys
    and values.
    """

    pictures: Pictures | None = None  # of a model that takes some

    def complete(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, images: Sequence[str] = ()
    ) -> list[Completion]:
        """Complete prompts of tokens, whose pictures in order are `images`, as one batch, left-padded."""
        width, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        context = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        length, options = width + decoding.max_new_tokens, {"do_sample": False, "num_beams": decoding.beams}
        context, mask = context.to(self.device), mask.to(self.device)
        if images:
            seen = self._read_pictures(images, context)
            tokens = self._generate(context, mask, max_length=length, **options, **seen).sequences
        else:
            tokens = self._model_generate(context, length, list(decoding.stops), attention_mask=mask, **options)
        return [self._read(made, decoding.stops) for made in tokens[:, width:].tolist()]

    def _read_pictures(self, images: Sequence[str], context: Tensor) -> dict[str, Tensor]:
        """What the model is given beside the tokens."""
        assert self.pictures is not None
        marks = {name: torch.tensor(rows) for name, rows in self.pictures.mark(context.tolist()).items()}
        return {name: value.to(self.device) for name, value in (self.pictures.read(images) | marks).items()}

    def _read(self, made: list[int], stops: Sequence[str]) -> Completion:
        """The text before the first token that ends one, and before any stop."""
        ends = self._ends()
        length = next((place for place, token in enumerate(made) if token in ends), None)
        text = str(self.tokenizer.decode(made[:length], skip_special_tokens=True))
        cuts = [place for stop in stops if (place := text.find(stop)) >= 0]
        return Completion(text[: min(cuts, default=None)], ended=length is not None or bool(cuts))

    def _ends(self) -> list[int]:
        end = self.model.generation_config.eos_token_id  # one, several or none
        return end if isinstance(end, list) else [] if end is None else [end]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **decoding: Any) -> Tensor:
        if decoding["do_sample"] or self.model._is_stateful or context.shape[1] == 1:
            tokens: Tensor = super()._model_generate(context, max_length, stop, **decoding)
            return tokens
        attention_mask, beams = decoding.pop("attention_mask"), decoding.pop("num_beams", 1)
        decoding.pop("temperature", None)
        if beams == 1:
            return self._generate_in_strides(context, attention_mask, max_length, stop, decoding)
        # `generate` repeats the prompts for each beam before it computes them; their cache can be repeated instead.
        cache = self._generate(context[:, :-1], attention_mask[:, :-1], max_new_tokens=1).past_key_values
        cache.batch_repeat_interleave(beams)
        # Beams end at EOS; the harness truncates the text after other stop strings.
        sequences: Tensor = self._generate(
            context, attention_mask, past_key_values=cache, max_length=max_length, num_beams=beams, **decoding
        ).sequences
        return sequences

    def _generate_in_strides(
        self, context: Tensor, mask: Tensor, max_length: int, stop: list[str], decoding: dict[str, Any]
    ) -> Tensor:
        prompt_length = context.shape[1]
        whole = context.new_full((len(context), max_length), self.tokenizer.pad_token_id)
        ends = context.new_tensor(self._ends())
        rows, tokens, cache = torch.arange(len(context), device=context.device), context, None
        while True:
            length = min(tokens.shape[1] + STRIDE, max_length)
            found = self._generate(tokens, mask, past_key_values=cache, max_length=length, **decoding)
            tokens, cache = found.sequences, found.past_key_values
            whole[rows, : tokens.shape[1]] = tokens
            made = tokens[:, prompt_length:]
            ended = torch.isin(made, ends).any(1).tolist()
            texts = self.tokenizer.batch_decode(made)
            going = [row for row, text in enumerate(texts) if not (ended[row] or any(mark in text for mark in stop))]
            if not going or length == max_length:
                return whole
            if len(going) < len(rows):
                kept = torch.tensor(going, device=context.device)
                cache.batch_select_indices(kept)
                rows, tokens, mask = rows[kept], tokens[kept], mask[kept]
            mask = torch.nn.functional.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=1)

    def _generate(self, tokens: Tensor, mask: Tensor, **decoding: Any) -> Any:
        return self.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            **decoding,
        )
