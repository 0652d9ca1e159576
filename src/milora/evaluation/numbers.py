"""Numbers in a model's text, read exactly."""

import re
from fractions import Fraction

MARKER = "The answer is:"
# A sign may stand before or after the currency; thousands come in threes; a fraction or decimals may follow.
NUMBER = re.compile(
    r"(?P<sign>[-−]?)\s*[$€£]?\s*(?P<minus>[-−]?)(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?P<rest>\.\d+|\s*/\s*\d+)?"
)


def extract_answer(text: str) -> Fraction | None:
    """Return the first number after the last "The answer is:", exactly; None where there is none.

    1,234,567 and -$5 and 3/4 are read whole; 12/00 is no number.
    """
    _, marker, stated = text.rpartition(MARKER)
    match = NUMBER.search(stated.split("\n")[0]) if marker else None
    if match is None:
        return None
    rest = (match["rest"] or "").replace(" ", "")
    if rest.startswith("/") and int(rest[1:]) == 0:
        return None
    value = Fraction(match["whole"].replace(",", "") + rest)
    return -value if match["sign"] or match["minus"] else value
