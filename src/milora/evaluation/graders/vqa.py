"""VQA accuracy: an answer against those of ten people, after VQA's or M4C's normalization."""

import json
import re
from collections.abc import Callable, Sequence

from milora.data.conversation import Conversation
from milora.evaluation.graders.grade import Grade

ACCURACY = "accuracy"
NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS.split())} | {"none": "0"}
ARTICLES = ("a", "an", "the")
MARKS = r""";/[]"{}()=+\_-><@`,?!"""
THOUSANDS = re.compile(r"\d,+\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # VQA passes re.UNICODE, which is 32, where `sub` takes the number of replacements
# What VQA's evaluation writes for them without one of their apostrophes. Its other entries change no lower-case word.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he'd he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
WITH_APOSTROPHE = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize(text: str) -> str:
    """Return an answer without case, punctuation and articles, numbers below eleven as digits: VQA's normalization.

    Source: GT-Vision-Lab/VQA, vqaEval.py, processPunctuation and processDigitArticle. A mark beside a space is deleted,
    and so are all marks if there is a comma between digits; other marks become spaces.
    """
    plain = _on_one_line(text)
    found = plain
    for mark in MARKS:
        beside_space = f"{mark} " in plain or f" {mark}" in plain
        found = found.replace(mark, "" if beside_space or THOUSANDS.search(plain) else " ")
    found = PERIOD.sub("", found, MOST_PERIODS)
    words = [DIGITS.get(word, word) for word in found.lower().split()]
    return " ".join(WITH_APOSTROPHE.get(word, word) for word in words if word not in ARTICLES)


def normalize_m4c(text: str) -> str:
    """Return an answer as M4C's evaluation of TextVQA normalizes it; LLaVA also uploads answers so.

    Source: facebookresearch/mmf, EvalAIAnswerProcessor.
    """
    return normalize(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def match(count: int) -> float:
    """Return how right an answer is that this many people gave: min(1, n/3)."""
    return min(1.0, count / 3)


def measure_agreement(answer: str, given: Sequence[str]) -> float:
    """Return VQA accuracy: the mean of `match` over all ways to leave one of the people out.

    acc(a) = 1/10 Σᵢ min(1, #{j ≠ i : aⱼ = a}/3), where n of the ten left-out people gave the answer themselves.
    """
    same = given.count(answer)
    return (same * match(same - 1) + (len(given) - same) * match(same)) / len(given) if same else 0.0


def score_vqa(completion: str, given: Sequence[str]) -> Grade:
    """Grade as VQA's evaluation grades an answer that LLaVA uploads: nothing is normalized once more if all agree."""
    answer = normalize_m4c(completion)
    cleaned = [_on_one_line(text) for text in given]
    if len(set(cleaned)) > 1:
        return Grade(answer or None, measure_agreement(normalize(answer), [normalize(text) for text in cleaned]))
    return Grade(answer or None, measure_agreement(answer, cleaned))


def score_textvqa(completion: str, given: Sequence[str]) -> Grade:
    """Grade as M4C's evaluation does."""
    answer = normalize_m4c(completion)
    return Grade(answer or None, measure_agreement(answer, [normalize_m4c(text) for text in given]))


def grade_answers(
    score: Callable[[str, Sequence[str]], Grade],
) -> Callable[[list[str], list[Conversation]], dict[str, list[Grade]]]:
    """Return the grading of rows whose field `answers` lists what people answered, in JSON."""

    def grade(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
        pairs = zip(completions, rows, strict=True)
        return {ACCURACY: [score(completion, json.loads(row.fields["answers"])) for completion, row in pairs]}

    return grade
