"""What fits into a model's context: prompts, and how many tokens may follow them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from milora.evaluation.generation.request import Request
from milora.method.errors import MiloraError


@dataclass(frozen=True, slots=True)
class Fitted:
    """Requests with as many new tokens as there is room for: 0 for a prompt that fills the context, which is not asked.

    `capped` of them have fewer than were asked for; `unfit` have none.
    """

    requests: list[Request]
    capped: int
    unfit: int


def fit(requests: Sequence[Request], context: int | None, *, follows: bool = False) -> Fitted:
    """Limit the new tokens of each request to what its prompt leaves of a context; None: the context is not known.

    Raises:
        MiloraError: no prompt fits, and none `follows` an answer that is there already.
    """
    if context is None:
        return Fitted(list(requests), 0, 0)
    fitted = [_cap(request, max(0, context - len(request.ids))) for request in requests]
    unfit = sum(request.decoding.max_new_tokens == 0 for request in fitted)
    if unfit == len(fitted) and not follows:
        shortest = min(len(request.ids) for request in requests)
        raise MiloraError(
            f"the model's context of {context} tokens has room for no prompt: the shortest has {shortest}",
            "evaluate another task, or a model with a longer context",
        )
    capped = sum(one.decoding != other.decoding for one, other in zip(fitted, requests, strict=True)) - unfit
    return Fitted(fitted, capped, unfit)


def _cap(request: Request, room: int) -> Request:
    if request.decoding.max_new_tokens <= room:
        return request
    return replace(request, decoding=replace(request.decoding, max_new_tokens=room))
