"""What a judge will cost, said and agreed to before it is asked."""

import sys
from collections.abc import Sequence

import openai

from milora.evaluation.generation.served import connect
from milora.method.errors import MiloraError
from milora.run.judge import JudgeSection

LETTERS = 4  # characters per token of English, about; a judge's tokenizer is seldom known
SECONDS = 30.0  # in which a judge says that it is there
AGREE = "pass --yes to agree beforehand"


def check_judge(section: JudgeSection, tasks: Sequence[str], can_agree: bool) -> None:
    """Raise unless there is a judge for these tasks, it answers, and what it costs is or can be agreed to.

    Nothing that costs is asked.
    """
    names = ", ".join(tasks)
    if not section.url:
        raise MiloraError(
            f"a model grades {names}, and no judge is named",
            "set evaluation.judge.url=…/v1 and evaluation.judge.model=…",
        )
    if not can_agree:
        raise MiloraError(f"the judge of {names} may cost money, and there is no terminal to ask in", AGREE)
    try:
        connect(section.url).with_options(max_retries=1, timeout=SECONDS).models.list()
    except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise MiloraError(
            f"no judge answers at evaluation.judge.url={section.url}: {error}",
            "start it, or check the address and OPENAI_API_KEY",
        ) from error
    except openai.APIStatusError:
        return  # it is there, and lists no models


def estimate_cost(section: JudgeSection, questions: Sequence[tuple[str, int]]) -> str:
    """Return what questions, each with the most tokens of its answer, cost: tokens, and money if prices are known."""
    tokens_in = sum(len(text) for text, _ in questions) // LETTERS
    tokens_out = sum(most for _, most in questions)
    said = f"{len(questions)} questions to {section.model}: about {tokens_in:,} tokens, and at most {tokens_out:,} back"
    if section.price_in is None or section.price_out is None:
        return f"{said}; its prices are not known (evaluation.judge.price_in, price_out)"
    return f"{said}; about {(tokens_in * section.price_in + tokens_out * section.price_out) / 1e6:.2f} at its prices"


def agree_to_cost(section: JudgeSection, questions: Sequence[tuple[str, int]], *, agreed: bool) -> None:
    """Say what questions cost, and return if that is agreed to.

    Raises:
        MiloraError: it is not, or there is no terminal to ask in.
    """
    cost = estimate_cost(section, questions)
    print(cost, file=sys.stderr)
    if agreed:
        return
    if not sys.stdin.isatty():
        raise MiloraError(f"{cost}: there is no terminal to ask in", AGREE)
    print("ask them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise MiloraError(f"{cost}: not agreed to", "the completions are kept; run the same command again, with --yes")
