"""The rules by which FollowBench (code/rule_based_evaluation.py, 6278f4c) grades what it does not leave to a judge.

A completion is read without the white space around it. The rules are otherwise the published ones, with their oddities:
a sentence is what is between two of `.!?`, blank or not, and a word what is between two spaces.
"""

import ast
import re
import string
from collections.abc import Callable, Sequence

Rule = Callable[[str], bool]


def grade_by_rule(completion: str, category: str, source: str, example: int, level: int, target: str) -> bool | None:
    """Return whether the completion satisfies all constraints of its level, or None if a judge has to say that."""
    text = completion.strip()
    if category == "example":
        return _fits_template(text, target)
    if category == "format" and example in FORMATS:
        return FORMATS[example](text, level)
    if source in STEPS:
        return all(holds(text) for holds in STEPS[source][:level])
    if source in ANSWERS:
        return ANSWERS[source](text, target)
    return None


def _fits_template(text: str, target: str) -> bool:
    """The answer may be any line that is not empty, in the words that the examples of the prompt put around it."""
    template = target.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}")
    pattern = ".*".join(re.escape(piece) for piece in template.split("{answer}"))
    return bool(text) and re.fullmatch(pattern, text) is not None


def _sentences(text: str) -> list[str]:
    return [piece for piece in re.split(r"[.!?]", text) if piece]


def _has_sentences(count: int) -> Rule:
    return lambda text: len(_sentences(text)) == count


def _has_word(word: str) -> Rule:
    return lambda text: re.search(rf"\b{re.escape(word)}\b", text) is not None


def _lacks_word(word: str) -> Rule:
    return lambda text: not _has_word(word)(text)


def _words_number(least: int, most: int) -> Rule:
    return lambda text: least <= len(text.split(" ")) <= most


def _sentence_has_word(number: int, word: str) -> Rule:
    """Whether there is a sentence of this number (from 1) with the word in it."""
    return lambda text: number <= len(_sentences(text)) and _has_word(word)(_sentences(text)[number - 1])


def _every(*rules: Rule) -> Rule:
    return lambda text: all(rule(text) for rule in rules)


def _sentences_are_shorter_than(words: int) -> Rule:
    return lambda text: all(len(sentence.split()) < words for sentence in _sentences(text))


def _sentences_are_longer_than(words: int) -> Rule:
    return lambda text: all(len(sentence.split()) > words for sentence in _sentences(text))


def _third_sentence_is_present_perfect(text: str) -> bool:
    return len(_sentences(text)) >= 3 and re.search(r"\b(has|have)\s+\w+", _sentences(text)[2]) is not None


def _punctuation(text: str) -> int:
    return sum(character in string.punctuation for character in text)


# What each level adds to the one before it.
STEPS: dict[str, Sequence[Rule]] = {
    "cnn_dailymail": (
        _has_sentences(3),
        _sentences_are_shorter_than(15),
        _every(_sentence_has_word(1, "Potter"), _sentence_has_word(2, "actor"), _sentence_has_word(3, "films")),
        lambda text: not _sentence_has_word(2, "lavish")(text),
        _third_sentence_is_present_perfect,
    ),
    "xsum": (
        _has_sentences(1),
        _words_number(1, 19),
        _lacks_word("Newton Stewart"),
        lambda text: re.search(r"\b(am|is|are)\s+\w+ing\b", text) is not None,
        _has_word("operation"),
    ),
    "samsum": (
        _has_sentences(1),
        _words_number(1, 14),
        _has_word("stuff"),
        lambda text: "procrast" not in text.lower(),
        lambda text: _punctuation(text) == 1,
    ),
    "gigaword": (
        _words_number(8, 8),
        lambda text: not _punctuation(text),
        str.islower,
        _lacks_word("bus"),
        _has_word("in"),
    ),
    "arxiv": (
        _has_sentences(1),
        _words_number(1, 20),
        lambda text: text.startswith("We"),
        _has_word("activations"),
        _lacks_word("transformer"),
    ),
}


def _last_match_is_target(pattern: str) -> Callable[[str, str], bool]:
    return lambda text, target: re.findall(pattern, text)[-1:] == [target]


# Sources with one right answer at each level.
ANSWERS: dict[str, Callable[[str, str], bool]] = {
    "E2E": str.__eq__,
    "text_editing": str.__eq__,
    "WIKIEVENTS": lambda text, target: set(text.split("\n")) <= set(target.split("\n")),
    "CONLL2003": lambda text, target: text in ast.literal_eval(target),
    "BBH_logical": _last_match_is_target(r"\([A-Z]\)"),
    "BBH_time": _last_match_is_target(r"\d{2}/\d{2}/\d{4}"),
    "gsm_8k": _last_match_is_target(r"\$\d+"),
    "self_made_space": lambda text, target: target in text,
}


def _grade_format_22(text: str, level: int) -> bool:
    """Three paragraphs; each of fewer than three sentences; sentences of more than 20 words; numbers; an ending.

    As published, no text passes with numbers: `1.` is counted as a sentence, of one word.
    """
    ending = "Those are suggestions"
    paragraphs = text.split("\n\n")
    steps = (
        len(paragraphs) == (3 if level < 5 else 4),
        all(len(_sentences(paragraph)) < 3 for paragraph in paragraphs[:3]),
        _sentences_are_longer_than(20)(text),
        all(re.match(r"\d+\.", paragraph.lstrip()) for paragraph in paragraphs if paragraph.strip()),
        text.endswith(ending),
    )
    return all(steps[:level])


def _grade_format_30(text: str, level: int) -> bool:
    """`**`; five keywords; points of fewer than two sentences; sentences of 10 to 15 words; no word that ends in -ly.

    As published, the last one looks for words that end in the characters "-ly", and the keywords are the second level
    although the prompts add them with the fifth.
    """
    sentences = re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", text)
    points = [sentence for sentence in sentences if any(f"{number}." in sentence for number in range(1, 6))]
    steps = (
        "**" in text,
        len(re.findall(r"\*\*[\d].+?:", text)) == 5,
        all(len(point.split(".")) < 3 for point in points),
        all(10 <= len(sentence.split()) <= 15 for sentence in sentences),
        not any(word.endswith("-ly") for sentence in sentences for word in sentence.split()),
    )
    return all(steps[:level])


FORMATS: dict[int, Callable[[str, int], bool]] = {22: _grade_format_22, 30: _grade_format_30}
