"""The function in a completion: every way in which models write one."""

import pytest

from milora.evaluation.graders.code import extract_function, official_function, program
from milora.evaluation.sandbox.programs import run_programs

PROMPT = 'import math\n\n\ndef helper(x):\n    return x\n\n\ndef add(a, b):\n    """Add."""\n'
TEST = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n"
BODY = "    total = a + b\n    return total\n"
WHOLE = "def add(a, b):\n" + BODY
WRONG = "def add(a, b):\n    return a - b\n"
# PiSSA strips what it cuts, and with it the first line's indent.
# completion, whether PiSSA's reading passes, whether ours does
ROWS = {
    "body": (BODY, True, True),
    "body and chatter": (BODY + "\nThis adds the numbers.", False, True),
    "body and example": (BODY + "\n# Example usage\nprint(add(1, 2))", False, True),
    "body and guard": (BODY + '\nif __name__ == "__main__":\n    print(add(1, 2))', False, True),
    "body and asserts": (BODY + "\nassert add(1, 2) == 4", False, True),
    "body and another function": (BODY + "\ndef other():\n    return 1\n", True, True),
    "body and an unfinished function": (BODY + "\ndef other(", False, True),
    "whole": (WHOLE, True, True),
    "whole after a line feed": ("\n" + WHOLE, True, True),
    "whole with chatter before": ("Here is the function:\n\n" + WHOLE, False, True),
    "whole with chatter after": (WHOLE + "\nIt adds.", False, True),
    "block": (f"```python\n{WHOLE}```", True, True),
    "block with chatter": (f"Sure!\n```python\n{WHOLE}```\nIt adds.", True, True),
    "block, unmarked": (f"```\n{WHOLE}```", False, True),
    "block, py": (f"```py\n{WHOLE}```", False, True),
    "block, capital": (f"```Python\n{WHOLE}```", False, True),
    "block, never closed": (f"```python\n{WHOLE}", True, True),
    "block, python3": (f"```python3\n{WHOLE}```", True, True),
    "block with an attribute": (f'```python title="add.py"\n{WHOLE}```', True, True),
    "block that ends on a line of code": (f"```python\n{WHOLE.rstrip()}```", False, True),
    "block after one in another language": (f"```bash\npip install x\n```\nThen:\n```python\n{WHOLE}```", True, True),
    "block before its output": (f"```python\n{WHOLE}```\nprints\n```text\n5\n```", True, True),
    "block of the body": (f"```python\n{BODY}```", False, True),
    "block with the prompt": (f"```python\n{PROMPT}{BODY}```", True, True),
    "two blocks, the second defines it": (f"```python\nprint(1)\n```\n```python\n{WHOLE}```", False, True),
    "two blocks, the first defines it": (f"```python\n{WHOLE}```\n```python\nadd(1, 2)\n```", True, True),
    "two definitions, the last counts": (f"```python\n{WRONG}\n{WHOLE}```", True, True),
    "block and example inside": (f"```python\n{WHOLE}\n# Example usage\nprint(add(1, 2)\n```", True, True),
    "block and guard": (f"```python\n{WHOLE}\nif __name__ == '__main__':\n    add(\n```", False, True),
    "imports first": (
        f"```python\nfrom math import fsum\n\n{WHOLE.replace('a + b', 'int(fsum([a, b]))')}```",
        True,
        True,
    ),
    "uses the prompt's helper": ("```python\ndef add(a, b):\n    return helper(a) + b\n```", True, True),
    "uses the prompt's import": ("    return int(math.fsum([a, b]))\n", True, True),
    "lost first indent": (BODY.removeprefix("    "), False, True),
    "lost one space of the first indent": (BODY.removeprefix(" "), False, True),
    "lost first indent, with chatter after": (BODY.removeprefix("    ") + "\nThis adds.", False, True),
    "lost first indent, of a loop": ("for x in (b,):\n        a += x\n    return a\n", False, True),
    "lost every indent, of a loop": ("for x in (b,):\n    a += x\nreturn a\n", False, True),
    "lost every indent": ("total = a + b\nreturn total", False, True),
    "lost indent of a single line": ("return a + b", False, True),
    "tabs": (BODY.replace("    ", "\t"), False, True),
    "CRLF": (WHOLE.replace("\n", "\r\n"), True, True),
    "CRLF block": (f"```python\n{WHOLE}```".replace("\n", "\r\n"), True, True),
    "unicode": (WHOLE.replace("total", "größe"), True, True),
    "emoji after": (WHOLE + "\n🎉", False, True),
    "class beside": (f"```python\nclass A:\n    pass\n\n{WHOLE}```", True, True),
    "decorated": (f"```python\nimport functools\n@functools.cache\n{WHOLE}```", True, True),
    "annotated": ("def add(a: int, b: int) -> int:\n    return a + b\n", True, True),
    "wrong": (WRONG, False, False),
    "another name": ("def sum_(a, b):\n    return a + b\n", False, False),
    "nothing": ("", False, False),
    "words": ("I cannot do that.", False, False),
    "stop words": (f"{BODY}\n### Instruction:\nNow write", False, True),
    "prompt echo": (
        f"### Instruction:\nComplete.\n```python\n{PROMPT}```\n### Response:\n```python\n{WHOLE}```",
        False,
        True,
    ),
    "only the signature": ("def add(a, b):", False, False),
    "assert in a name": (BODY.replace("total", "asserted"), False, True),
}


@pytest.fixture(scope="module")
def outcomes():
    programs = [
        program(extract(completion, PROMPT, "add"), TEST, "add")
        for completion, _, _ in ROWS.values()
        for extract in (official_function, extract_function)
    ]
    found = run_programs(programs)
    return dict(zip(ROWS, zip(found[::2], found[1::2], strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_readings(outcomes, name):
    assert tuple(outcome.passed for outcome in outcomes[name]) == ROWS[name][1:], outcomes[name]
