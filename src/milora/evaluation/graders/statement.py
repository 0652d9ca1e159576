r"""Whether the text of two answers lets them be the same: what math-verify overlooks or forgives.

Known to pass still: another unit (5 cm for 5 m), a prime (f' for f), the order of factors (AB for BA).
"""

import re
import unicodedata
from collections import Counter

# Signs outside ASCII that math-verify may drop: as LaTeX. Any other makes an answer unreadable.
SIGNS = {
    **dict.fromkeys("−–‐‑﹣－", "-"),
    "π": "\\pi ",
    "∞": "\\infty ",
    "°": "^\\circ ",
    "×": "\\times ",
    "·": "\\cdot ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "∪": "\\cup ",
    "\xa0": " ",
}
TEXT = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm)\b")
# Words that make another value of the number beside them, or a choice of several.
WORDS = re.compile(
    r"\b(?:not|or|least|most|than|wrong|maybe|hundred|thousand|[mbtr]+illion|dozen|half|twice|double|square root)s?\b"
)
COMMANDS = re.compile(r"\\(?:[dt]?frac|sqrt|pi|cdot|times|left|right|infty|circ)\b")


def translate(text: str) -> str | None:
    """Write signs as LaTeX and decimals as fractions, exactly; None where a sign has no known meaning."""
    text = "".join(SIGNS.get(character, character) for character in text if unicodedata.category(character) != "Cf")
    text = re.sub(r"\\?[$%]", "", text)
    text = text.removesuffix("}") if text.count("}") > text.count("{") else text
    text = re.sub(r"(\d),(?=\d{3}(?:,\d{3})*\.\d)", r"\1", text)
    text = re.sub(r"(?<![\d.,])(\d*)\.(\d+)(?![\d.]|\\overline|\\bar|\\dot|\\ldots)", _exact, text)
    text = " ".join(re.sub(r"\\[dt]frac", r"\\frac", text).split())
    return text if text.isascii() else None


def _exact(match: re.Match[str]) -> str:
    whole, decimals = match.groups()
    return f"\\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}}" if int(decimals) else str(int(whole or 0))


def same_words(answer: str, gold: str) -> bool | None:
    """Compare answers in words, such as \\text{Evelyn} or \\text{(A)}, as words; None if the gold is not words."""
    words = _words(gold)
    if not re.fullmatch(r"[a-z ]+", words) or "," in gold or not (TEXT.search(gold) or re.search("[a-z]{3}", words)):
        return None
    if "\\" in TEXT.sub("", gold):
        return None
    return _words(answer) == words


def _words(text: str) -> str:
    return " ".join(re.sub(r"[{}()$.~]|\\ ", " ", TEXT.sub(" ", text)).lower().split())


def may_be_same(answer: str, gold: str) -> bool:
    """Refuse what has other brackets, bases, altering words or repeated items than the gold, and what is unfinished."""
    if re.search(r"[-+*/^_=<>,]$|^[*/^=,]|(?<![_\d])\d+\s+\d|\\approx|\*\*|\.\.", answer) and answer != gold:
        return False
    if set(WORDS.findall(answer.lower())) - set(WORDS.findall(gold.lower())):
        return False
    return (
        _brackets(answer) == _brackets(gold)
        and _bases(answer) == _bases(gold)
        and ("\\pm" in answer + gold or _repeats(answer) == _repeats(gold))
    )


def numeric_sides(answer: str) -> list[str]:
    """The sides of an equation that name no unknown: all of them must be the value."""
    sides = re.split(r"(?<![!<>])=", answer)
    return [side for side in sides if not re.search("[a-zA-Z]", COMMANDS.sub("", side))] if len(sides) > 1 else []


def _brackets(text: str) -> list[tuple[str, str]]:
    r"""The brackets of tuples and intervals, innermost ones; a set's \{ \} may be left out."""
    text = re.sub(r"\\left|\\right|\\[,;!: ]", "", text)
    outer = [(text[0], text[-1])] if "," in text and text[0] in "([" and text[-1] in ")]" else []
    return outer + re.findall(r"([(\[])[^()\[\]]*,[^()\[\]]*([)\]])", text)


def _bases(text: str) -> list[str]:
    return re.findall(r"\d_\{?(?:\\text\{)?(\w+)", text)


def _repeats(text: str) -> Counter[str]:
    """The items that occur more than once in a list."""
    text = re.sub(r"\\left|\\right|\\text\{ ?and ?\}|\s", ",", text) if "," in text else text
    items = Counter(item for item in re.split(r"[,{}()\[\]\\]+", text) if item)
    return Counter({item: count for item, count in items.items() if count > 1}) if "," in text else Counter()
