"""A model's answer without its dress: LaTeX, Markdown, HTML, and what was crossed out."""

import re
import unicodedata

STRUCK = re.compile(r"~~|</?(?:s|del|strike)>|[✗✘❌❎]|\d!!", re.IGNORECASE)
STRUCK_OUT = re.compile(r"~~.*?~~|<(s|del|strike)>.*?</\1>", re.IGNORECASE | re.DOTALL)
TAGS = re.compile(r"</?(?:b|i|em|strong|u|code|answer|span|p|br) ?/?>", re.IGNORECASE)
# What may be dropped without another meaning. Any other command, such as \sqrt or \neq, makes the answer unreadable.
DRESS = re.compile(r"\\(?:boxed|text\w*|math\w*|left|right|displaystyle|quad|[()\[\]{}$%;:! ])")
SIGNS = {r"\times": "×", r"\cdot": "·", r"\div": "÷"}
# Abbreviations whose period does not end a sentence.
END = re.compile(r"(?<!\b(?:No|no|Rs|Mr|Ms|Dr|St|sq|ft))(?<!\bMrs)([.!?])(?: |$)")
# A next sentence that takes the answer back, or an answer that was only the number of a list's item.
TAKEN_BACK = re.compile(
    r"\W*(?:no[,.:;!]|(?:no (?:wait|it|that)|nope|wait|actually|sorry|oops|hmm|correction|scratch)\b|\d)"
)


def first_sentence(text: str) -> str:
    """Undress the first sentence; empty if it is a question, crossed out, taken back, or in unknown LaTeX.

    It is also empty if the line continues with an equation, which may be what is meant.
    """
    line, _, later = text.strip().partition("\n")
    line = _undress(line)
    sentence, *ended = END.split(line, maxsplit=1)
    mark, rest = ended or ("", "")
    retracted = TAKEN_BACK.match(rest.lower()) or TAKEN_BACK.match(re.sub(r"\d", "", later).lower())
    unreadable = STRUCK.search(line) or re.search(r"\\[a-z]", line, re.IGNORECASE)
    return "" if mark == "?" or "=" in rest or retracted or unreadable else sentence


def _undress(line: str) -> str:
    line = TAGS.sub("", line).replace("{,}", ",").replace("**", "" if line.count("**") > 1 else "**")
    line = re.sub(r"(?<!\w)(__?)([^_]+)\1(?!\w)", r"\2", line)
    line = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2", line)
    line = re.sub(r"\^\{?\\circ\}?", "°", line)
    line = re.sub(r"(?<=\d)\\,(?=\d)", ",", line).replace(r"\,", " ")
    for command, sign in SIGNS.items():
        line = line.replace(command, sign)
    line = DRESS.sub(lambda match: match[0][1:] if match[0][1] in "()[]{}$% " else "", line)
    # Powers of ten; exponents of units.
    line = re.sub(r"(?<=\d) ?(?:[×x·]|\*(?!\*)) ?10(?:\^|\*\*)(?:\{(-?\d{1,3})\}|(-?\d{1,3})(?!\d))", r"e\1\2", line)
    line = re.sub(r"\b([kcm]?m|[a-z]{2,})\}?(?:\^\{?[23]\}?|[²³])", r"\1", line)
    line = "".join(character for character in line if unicodedata.category(character) != "Cf")
    return re.sub(r"\s+", " ", line)
