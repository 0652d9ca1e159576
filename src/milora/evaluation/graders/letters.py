"""The letter of an option, as ScienceQA's and MMBench's evaluations read it."""

import re
from collections.abc import Mapping

LETTERS = "ABCDE"
THE_ANSWER = re.compile(r"The answer is ([A-Z]).")
BREAKS = re.compile(r"[.()\[\],:;!*#{}]")
ARTICLE_WORDS = 3  # in a longer answer an A may be the article


def read_scienceqa(completion: str) -> str | None:
    """Return the letter that a completion consists of, begins with ("B. …"), or announces once.

    Source: haotian-liu/LLaVA, eval_science_qa.py. Its pattern needs one more character after the letter.
    """
    text = completion.strip()
    if text and text[0] in LETTERS and (len(text) == 1 or text[1:3] == ". "):
        return text[0]
    announced = THE_ANSWER.findall(text)
    return announced[0] if len(announced) == 1 else None


def read_mmbench(completion: str, options: Mapping[str, str]) -> str | None:
    """Return the one letter that stands alone in a completion, or the letter of the one option that it contains.

    Source: open-compass/VLMEvalKit, matching_util.py. At the server a language model reads what these rules do not.
    """
    words = BREAKS.sub(" ", completion).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and not (named[0] == "A" and len(words) > ARTICLE_WORDS):
        return named[0]
    text = completion.lower()
    quoted = [letter for letter, option in options.items() if option.lower() in text]
    return quoted[0] if len(quoted) == 1 else None
