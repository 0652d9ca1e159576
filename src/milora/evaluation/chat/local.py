"""A model in this process that answers in a chat, and with it the base that it was trained from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.data.conversation import Message, Role, Text
from milora.data.templates import ChatTemplate, Template, choose_template, resolve_template
from milora.evaluation.chat.speaker import Sampling, Write
from milora.evaluation.chat.stream import EndOf, Stream
from milora.evaluation.generation.neutral import ends_of, neutralize
from milora.evaluation.generation.wide import widen
from milora.evaluation.target import Target, resolve_target, template_of_run
from milora.method.errors import MiloraError
from milora.method.options import Dtype, TemplateName
from milora.models.base import context_length
from milora.run.directory import Permissions, is_run, open_run
from milora.run.launch import processes


@dataclass(frozen=True, slots=True)
class Prompter:
    """Messages → the tokens of a prompt, in the template that the model was trained with."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    sampling: Sampling

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return self.template.encode_prompt(self.tokenizer, messages)

    def takes(self, *roles: Role) -> bool:
        """Whether the template can express messages of these roles."""
        try:
            self.encode([Message(role, (Text("Hello"),)) for role in roles])
        except MiloraError:
            return False
        return True

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether there is room for the messages, and for an answer: half of the context is enough."""
        if self.context is None:
            return True
        return len(self.encode(messages)) + min(self.sampling.max_new_tokens, self.context // 2) <= self.context

    def limit(self, prompt: Sequence[int]) -> int:
        """Return how many new tokens there is room for.

        Raises:
            MiloraError: for none.
        """
        room = self.sampling.max_new_tokens if self.context is None else self.context - len(prompt)
        if room <= 0:
            raise MiloraError(
                f"the prompt has {len(prompt)} tokens, and the model's context of {self.context} has no room for an "
                "answer",
                "ask something shorter",
            )
        return min(room, self.sampling.max_new_tokens)


@dataclass(frozen=True, slots=True)
class LocalSpeaker:
    """A model, or with `is_base` the base under its adapter, which is disabled for the answer: there is no copy."""

    name: str
    about: str
    model: PreTrainedModel | PeftModel
    prompter: Prompter
    ends: list[int]
    is_base: bool = False

    @property
    def has_turns(self) -> bool:
        return self.prompter.takes("user", "assistant", "user")

    @property
    def has_system(self) -> bool:
        return self.prompter.takes("system", "user")

    def fits(self, messages: Sequence[Message]) -> bool:
        return self.prompter.fits(messages)

    def answer(self, messages: Sequence[Message], write: Write) -> bool:
        tokens, tokenizer = self.prompter.encode(messages), self.prompter.tokenizer
        limit, temperature = self.prompter.limit(tokens), self.prompter.sampling.temperature
        stream = Stream(tokenizer, self.ends, self.prompter.template.stops, write)
        generate = cast(Callable[..., object], self.model.generate)
        prompt = torch.tensor([tokens], device=self.model.device)
        # Without top_k transformers samples from the 50 most probable tokens.
        decoding = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        try:
            with self._weights():
                generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=limit,
                    streamer=stream,
                    stopping_criteria=[EndOf(stream)],
                    pad_token_id=tokenizer.pad_token_id,
                    **decoding,
                )
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MiloraError("the conversation does not fit into memory", "ask something shorter") from error
        return stream.ended

    @contextmanager
    def _weights(self) -> Iterator[None]:
        if self.is_base:
            assert isinstance(self.model, PeftModel)
            with self.model.disable_adapter():
                yield
            return
        if isinstance(self.model, PeftModel) and not self.model.active_peft_config.is_prompt_learning:
            # Ctrl-C may have come while the adapter of some layers was not enabled again yet.
            cast(BaseTuner, self.model.base_model).enable_adapter_layers()
        yield


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """A model to talk to, and the template to talk in."""

    target: Target
    template: TemplateName


def open_target(name: str, dtype: Dtype | None, template: TemplateName | None, permissions: Permissions) -> ChatTarget:
    """Return what `name` stands for, and the template that it was trained with, if none is asked for.

    What lies inside a run directory was trained with the run's. Others are asked in the chat template of their
    tokenizer, or if it has none in `plain`. See `resolve_target`.
    """
    target = resolve_target(name, dtype or "bfloat16", permissions)
    if dtype is not None:
        target = replace(target, model=target.model.model_copy(update={"dtype": dtype}))
    known = template or target.template or _find_template(Path(name), permissions) or "auto"
    return ChatTarget(target, choose_template(known, target.load_tokenizer))


def load_speakers(
    chosen: ChatTarget, sampling: Sampling, *, compare: bool = False, system: str | None = None
) -> list[LocalSpeaker]:
    """Load a target; with `compare`, its base answers before it.

    Raises:
        MiloraError: the target is a model, which has no base, or the template has no room for a `system` prompt.
    """
    target = chosen.target
    if compare and target.who == "base":
        raise MiloraError(f"--compare: {target.served} is a model, which has no base", "name a run or an adapter")
    tokenizer = target.load_tokenizer()
    template = resolve_template(chosen.template, lambda: tokenizer)
    prompter = Prompter(template, tokenizer, context_length(target.model, tokenizer), sampling)
    if system and not prompter.takes("system", "user"):
        raise MiloraError(
            f"--system: the template {chosen.template} has no room for a system prompt", "write it into the question"
        )
    about = f"{target.served}: template {chosen.template}, {sampling}"
    if not compare:
        return [_speaker(target.who, about, widen(target.load()), prompter)]
    if target.adapter is None:  # fully tuned: no weight is shared
        return [_speaker(one.who, about, one.load(), prompter) for one in (target.base, target)]
    # A residual adapter means the same in intact form, which does not change the base.
    tuned = _speaker(target.who, about, replace(target, form="intact").load(), prompter)
    return [replace(tuned, name=target.base.who, is_base=True), tuned]


def _speaker(name: str, about: str, model: PreTrainedModel | PeftModel, prompter: Prompter) -> LocalSpeaker:
    template = prompter.template
    turn = [template.end_of_turn] if isinstance(template, ChatTemplate) else []
    ends = list(dict.fromkeys([*ends_of(model, prompter.tokenizer), *turn]))
    neutralize(model, ends)
    return LocalSpeaker(name, about, model.to(processes().device), prompter, ends)


def _find_template(path: Path, permissions: Permissions) -> TemplateName | None:
    """RUN/adapter, RUN/model, and RUN/export/FORM were trained with the run's template."""
    for folder in path.resolve().parents[:2] if path.is_dir() else ():
        if is_run(folder):
            return template_of_run(open_run(folder, permissions))
    return None
