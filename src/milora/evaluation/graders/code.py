"""The function in a model's completion, and the program that tests it."""

import ast
import re
import textwrap
from itertools import takewhile

# Blocks in other languages are matched as well, so that the end of one is not taken for the start of another.
BLOCK = re.compile(r"^[ \t]*```[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:^[ \t]*```|```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"|python[\d.]*|py[\d.]*|\{?\.?python\}?", re.IGNORECASE)
TOP_LEVEL = re.compile(r"(?:async )?def |class |import |from |@|[A-Za-z_]\w* *(?::.*)?= *\S")


def program(code: str, test: str, entry_point: str) -> str:
    """The code, then HumanEval's tests of it."""
    return f"{code}\n\n{test}\n\ncheck({entry_point})\n"


def official_function(completion: str, prompt: str, entry_point: str) -> str:
    """Read a completion as PiSSA does: its first Python block, cut at a main guard, an example, an assert.

    Source: GraphPKU/PiSSA, utils/code_process.py, lines 23-51; evalplus then puts it after the prompt.
    """
    text = completion.replace("\r", "")
    if "```python" in text:
        text = text.partition("```python")[2].strip().partition("\n```")[0].strip()
    for end in ('if __name__ == "__main__":', "# Example usage", "assert"):
        text, found, _ = text.partition(end)
        text = text.strip() if found else text
    return prompt + text


def extract_function(completion: str, prompt: str, entry_point: str) -> str:
    """Return a program with the function `entry_point` from a completion: written out, or going on after the prompt.

    The last code block that defines it, else the first block, else the whole text. What the prompt has
    before its definition (imports, helpers) comes first; trailing lines that are not Python are dropped. "" if nothing
    is left.
    """
    text = completion.replace("\r\n", "\n").replace("\t", "    ")
    definition = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    blocks = [code for language, code in BLOCK.findall(text) if PYTHON.fullmatch(language)]
    code = next((block for block in reversed(blocks) if definition.search(block)), blocks[0] if blocks else text)
    code = re.split(r"^if __name__ *==", code, maxsplit=1, flags=re.MULTILINE)[0]
    if definition.search(code):
        first = next(number for number, line in enumerate(code.split("\n")) if TOP_LEVEL.match(line))
        written = "\n".join(code.split("\n")[first:])
        before = definition.split(prompt)[0]
        return _parsable(f"{before}\n{written}", definition)
    # A wrong guess at the indent stops being Python at once: keep the reading that parses furthest.
    return max((_parsable(prompt + body, definition) for body in _as_bodies(code)), key=len)


def _as_bodies(code: str) -> list[str]:
    """The lines of a function's body, as they may be meant where a model lost an indent: the first line's, or all."""
    first, *others = code.strip("\n").split("\n")
    bodies = [[first, *others]] if first.startswith(" ") else []
    if not first.startswith("    "):
        bodies.append(["    " + first.lstrip(), *others])
    if not first.startswith(" "):
        bodies.append(textwrap.indent("\n".join([first, *others]), "    ").split("\n"))
    return ["\n".join(takewhile(_is_python, lines)) + "\n" for lines in bodies]


def _is_python(line: str) -> bool:
    """Whether a line may belong to a body or to what is defined after it, rather than to talk or an example."""
    return not line[:1].strip() or TOP_LEVEL.match(line) is not None


def _parsable(text: str, definition: re.Pattern[str]) -> str:
    """The longest run of leading lines that is Python and defines the function."""
    lines = text.split("\n")
    for end in range(len(lines), 0, -1):
        part = "\n".join(lines[:end])
        if not definition.search(part):
            break
        try:
            ast.parse(part)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return part + "\n"
    return ""
