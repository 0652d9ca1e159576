"""Questions to a judge, a model at an OpenAI-compatible endpoint, and its answers: each is stored as it comes."""

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Self, TextIO

import openai
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from milora.data.conversation import Message, Text
from milora.evaluation.generation.served import connect
from milora.evaluation.judges.cost import agree_to_cost
from milora.method.errors import MiloraError
from milora.method.files import format_json, read_whole_lines
from milora.run.directory import ScoreFolder
from milora.run.judge import JudgeSection

RETRIES = 10  # most of a minute, if the server names no time
REFUSED = (400, 413, 422)  # what a judge answers to one question that it does not take: a very long one, for example


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked; with `top_logprobs`, also for the probabilities of the first token of its answer."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    top_logprobs: int | None = None

    @classmethod
    def of(cls, user: str, max_tokens: int, *, system: str = "", top_logprobs: int | None = None) -> Self:
        """Return a question of one turn, after a system message if one is given."""
        messages = [Message("system", (Text(system),))] if system else []
        return cls((*messages, Message("user", (Text(user),))), max_tokens, top_logprobs=top_logprobs)

    @property
    def text(self) -> str:
        return "\n".join(message.text for message in self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge answered: its text, and the log-probabilities of the first token if it gave some.

    `problem` says why there is nothing to read: what came back is not a chat completion, the question was refused, or
    the text is empty.
    """

    text: str
    top_logprobs: tuple[tuple[str, float], ...] | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """Who grades a benchmark's completions, for one target; `folder` is that of the scores.

    `generator` names the target in files for others. `agreed`: what the judge costs was agreed to beforehand.
    """

    section: JudgeSection
    folder: ScoreFolder
    generator: str
    data_dir: str | None
    agreed: bool

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers in the order of the questions; see `ask_all`."""
        return ask_all(self.section, questions, self.folder, agreed=self.agreed)


def ask_all(
    section: JudgeSection, questions: Sequence[Question], folder: ScoreFolder, *, agreed: bool = False
) -> list[Answer]:
    """Ask what has no stored answer yet, some questions at a time, and store each answer at once, as it came.

    Equal questions are asked once. Every whole answer counts, even if nothing can be read in it. A judge that is busy,
    slow, or breaks off is asked again, after the time that it names.

    Raises:
        MiloraError: what the judge costs is not agreed to, or it did not answer all: after all have been tried, and
            what was answered is kept.
    """
    digests = [_digest(section, question) for question in questions]
    known = _read_stored(folder)
    missing = {digest: one for digest, one in zip(digests, questions, strict=True) if digest not in known}
    if missing:
        agree_to_cost(section, [(one.text, one.max_tokens) for one in missing.values()], agreed=agreed)
        known |= _ask_missing(section, missing, folder, others_answered=any(digest in known for digest in digests))
    return [_read_answer(known[digest]) for digest in digests]


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a server said: 200 with the body of an answer, or another status with why it refuses the question."""

    status: int
    body: str


def _ask_missing(
    section: JudgeSection, missing: dict[str, Question], folder: ScoreFolder, *, others_answered: bool
) -> dict[str, _Stored]:
    """A refusal is stored only if other questions are answered: if all are refused, it is not for what is in them."""
    assert section.url and section.model
    client, model = connect(section.url).with_options(max_retries=RETRIES), section.model
    answered: dict[str, _Stored] = {}
    refused: dict[str, _Stored] = {}
    failures: list[openai.OpenAIError] = []
    lock = threading.Lock()
    folder.path.mkdir(parents=True, exist_ok=True)
    with (
        folder.judgments.open("a", encoding="utf-8") as stream,
        tqdm(total=len(missing), unit="verdict") as bar,
        ThreadPoolExecutor(section.concurrency) as pool,
    ):
        stream.write("\n")  # a kill may have left the last line half-written

        def ask(digest: str, question: Question) -> None:
            """Stores in its own thread, so that an interruption loses no answer that is on its way."""
            try:
                found = _ask(client, model, question)
            except openai.OpenAIError as error:
                failures.append(error)
                return
            with lock:
                bar.update()
                if found.status != 200:
                    refused[digest] = found
                    return
                answered[digest] = found
                _store(stream, digest, found)

        try:
            for future in [pool.submit(ask, *item) for item in missing.items()]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        if refused and (answered or others_answered):
            for digest, found in refused.items():
                _store(stream, digest, found)
        elif refused:
            raise MiloraError(
                f"the judge at {section.url} refuses all questions: {next(iter(refused.values())).body[:300]}",
                "check evaluation.judge.model, and that the server takes what the benchmark asks for",
            )
    if failures:
        raise MiloraError(
            f"{len(failures)} of {len(missing)} questions were not answered by the judge at {section.url}: "
            f"{failures[0]}",
            "what was answered is kept; run the same command again for the rest",
        )
    return answered | refused


def _ask(client: openai.OpenAI, model: str, question: Question) -> _Stored:
    """The body as it came: what the client would make of it is read from there, now and later."""
    logprobs: dict[str, Any] = (
        {} if question.top_logprobs is None else {"logprobs": True, "top_logprobs": question.top_logprobs}
    )
    messages: list[Any] = [{"role": message.role, "content": message.text} for message in question.messages]
    try:
        answer = client.chat.completions.with_raw_response.create(
            model=model,
            messages=messages,
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            **logprobs,
        )
    except openai.APIStatusError as error:
        if error.status_code not in REFUSED:
            raise
        return _Stored(error.status_code, error.message)
    return _Stored(200, answer.http_response.text)


def _store(stream: TextIO, digest: str, found: _Stored) -> None:
    stream.write(format_json({"request": digest, "status": found.status, "body": found.body}) + "\n")
    stream.flush()


def _read_stored(folder: ScoreFolder) -> dict[str, _Stored]:
    if not folder.judgments.is_file():
        return {}
    entries = read_whole_lines(folder.judgments)
    return {entry["request"]: _Stored(entry["status"], entry["body"]) for entry in entries}


def _digest(section: JudgeSection, question: Question) -> str:
    content = json.dumps([section.url, section.model, asdict(question)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class _Token(BaseModel):
    token: str
    logprob: float


class _Position(BaseModel):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Position] | None = None


class _Said(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Said
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(BaseModel):
    """What is read of a chat completion; the rest may be anything."""

    choices: list[_Choice]
    usage: _Usage | None = None


def _read_answer(stored: _Stored) -> Answer:
    if stored.status != 200:
        return Answer("", problem=f"refused with {stored.status}")
    try:
        body = _Body.model_validate_json(stored.body)
    except ValidationError:
        return Answer("", problem="malformed")
    if not body.choices:
        return Answer("", problem="malformed")
    choice, usage = body.choices[0], body.usage or _Usage()
    text = choice.message.content or ""
    first = choice.logprobs.content[0].top_logprobs if choice.logprobs and choice.logprobs.content else []
    return Answer(
        text,
        tuple((one.token, one.logprob) for one in first) or None,
        choice.finish_reason,
        usage.prompt_tokens,
        usage.completion_tokens,
        problem=None if text.strip() else "empty",
    )
