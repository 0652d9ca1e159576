"""Completions on disk as they are made, so that nothing is asked twice."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from milora.evaluation.generation.local import Engine, Request
from milora.run.launch import processes


class RecordedModel(LM):
    """An engine as the harness' model; every completion is appended to `<folder>/completions-<process>.jsonl` at once.

    A killed evaluation goes on from there, and several processes share one. A line is taken only if it is whole and
    was made for the same prompt and decoding.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        super().__init__()
        self.engine, self.folder = engine, folder
        self.seconds, self.made = 0.0, 0

    def generate_until(self, requests: list[Instance]) -> list[str]:
        asked = [Request(*instance.args) for instance in requests]
        digests = [_digest(request) for request in asked]
        known = self._read(digests)
        launch = processes()
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        file = self.folder / f"completions-{launch.process_index}.jsonl"
        bar = tqdm(total=len(asked), initial=len(known), disable=not launch.is_main_process, unit="sample")
        with file.open("a", encoding="utf-8") as stream, bar:
            # A kill may have left the last line half-written.
            stream.write("\n")
            for completions in self.engine.complete(asked, set(known)):
                for index, text in completions.items():
                    line = {"index": index, "request": digests[index], "completion": text}
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                stream.flush()
                known.update(completions)
                self.made += len(completions)
                bar.update(len(completions) * launch.num_processes)
        self.seconds = time.perf_counter() - started
        for index, text in gather_object(list(known.items())):
            known[index] = text
        return [known[index] for index in range(len(asked))]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> Any:
        raise NotImplementedError

    def _read(self, digests: list[str]) -> dict[int, str]:
        known: dict[int, str] = {}
        for file in self.folder.glob("completions-*.jsonl"):
            for line in file.read_text(encoding="utf-8").split("\n"):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if entry["index"] < len(digests) and entry["request"] == digests[entry["index"]]:
                    known[entry["index"]] = entry["completion"]
        return known


def _digest(request: Request) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
