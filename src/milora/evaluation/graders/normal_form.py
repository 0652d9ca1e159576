r"""The authors' normal form of a LaTeX answer, a string; it raises on some answers, and they let those pass.

Source: sufenlp/MiLoRA, inference/util.py, lines 94-223.
"""

DELETED = ("\n", "\\!")
RENAMED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))
DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


def normalize(text: str) -> str:
    """Return the normal form.

    Raises:
        AssertionError: it contains more than one \\text{.
        IndexError: a \\sqrt or \\frac has nothing after it.
        ValueError: one slash has something else than whole numbers at its sides.
    """
    for part in DELETED:
        text = text.replace(part, "")
    for old, new in RENAMED:
        text = text.replace(old, new)
    for part in DROPPED:
        text = text.replace(part, "")
    text = _without_units(text)
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    left, _, right = text.partition("=")
    if text.count("=") == 1 and len(left) <= 2:
        text = right
    text = _brace_fractions(_brace_roots(text).replace(" ", ""))
    return _fraction_of_slash("\\frac{1}{2}" if text == "0.5" else text)


def _without_units(text: str) -> str:
    parts = text.split("\\text{ ")
    if len(parts) > 2:
        raise AssertionError
    return parts[0]


def _brace_roots(text: str) -> str:
    r"""\sqrt3 → \sqrt{3}."""
    first, *rest = text.split("\\sqrt")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _brace_fractions(text: str) -> str:
    r"""\frac12 → \frac{1}{2}; an unfinished one leaves the whole text as it is."""
    first, *rest = text.split("\\frac")
    whole = first
    for part in rest:
        if part[0] == "{":
            whole += "\\frac" + part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            whole += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            whole += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return whole


def _fraction_of_slash(text: str) -> str:
    r"""3/4 → \frac{3}{4}."""
    if text.count("/") != 1:
        return text
    above, below = (int(part) for part in text.split("/"))
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
