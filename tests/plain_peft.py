"""Answers of exported adapters in plain PEFT: `python -m tests.plain_peft FOLDER` writes `answers.safetensors` there.

FOLDER contains an adapter of each architecture, by its name. milora is never imported.
"""

import sys
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file

from tests.architectures import ARCHITECTURES, answer


def main(folder: Path) -> None:
    answers = {}
    for adapter in sorted(path for path in folder.iterdir() if path.is_dir()):
        architecture = ARCHITECTURES[adapter.name]
        model = PeftModel.from_pretrained(architecture.build(), str(adapter))
        answers[adapter.name] = answer(model, architecture).contiguous()
    assert "milora" not in sys.modules
    save_file(answers, folder / "answers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
