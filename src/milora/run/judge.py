"""Which model grades answers, and how it is asked."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from milora.method.options import JudgeForm
from milora.run.settings import Section
from milora.run.values import Positive


class JudgeSection(Section):
    """The model that grades answers, at an OpenAI-compatible endpoint; its key is OPENAI_API_KEY in the environment."""

    url: str | None = None
    """The endpoint, ending in `/v1`."""
    model: str | None = None
    """Its name there."""
    form: JudgeForm = "corrected"
    """`official`: the published prompt, byte for byte. `corrected`: what imitates the prompt is made harmless."""
    both_orders: bool = False
    """Ask about each pair twice, the answers exchanged."""
    concurrency: Positive = 8
    """Questions at a time."""
    price_in: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """The price of a million tokens of questions, to say what judging costs."""
    price_out: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """The price of a million tokens of answers."""

    @model_validator(mode="after")
    def _a_judge_has_an_address_and_a_name(self) -> Self:
        if self.url and "@" in self.url.partition("://")[2].partition("/")[0]:
            raise ValueError("url has a user or a key in it, which would be stored: set OPENAI_API_KEY instead")
        if bool(self.url) != bool(self.model):
            raise ValueError(f"url={self.url} does not fit model={self.model}: a judge needs both")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out: set both")
        return self
