"""Completions on disk as they are made, so that nothing is asked twice."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate.utils import gather_object
from tqdm import tqdm

from milora.evaluation.generation.request import Backend, Completion, Request
from milora.method.files import format_json, read_whole_lines
from milora.run.directory import ScoreFolder
from milora.run.launch import processes


@dataclass(frozen=True, slots=True)
class Completed:
    """Completions in the order of their requests; `made` of them by this process now, in `seconds`."""

    completions: list[Completion]
    made: int
    seconds: float


def complete_all(backend: Backend, requests: Sequence[Request], folder: ScoreFolder) -> Completed:
    """Complete every request, and append each completion to the folder's file of this process at once.

    A killed evaluation resumes from there, and several processes share one. A line is used only if it is whole and was
    made for the same prompt and decoding. A request without room for a new token is not asked.
    """
    digests = [_digest(request) for request in requests]
    known = _read_known(folder.all_completions(), digests)
    known |= {
        index: Completion("", ended=False)
        for index, request in enumerate(requests)
        if request.decoding.max_new_tokens == 0
    }
    launch = processes()
    folder.path.mkdir(parents=True, exist_ok=True)
    started, made = time.perf_counter(), 0
    bar = tqdm(total=len(requests), initial=len(known), disable=not launch.is_main_process, unit="sample")
    with folder.completions(launch.process_index).open("a", encoding="utf-8") as stream, bar:
        # A kill may have left the last line half-written.
        stream.write("\n")
        for completions in backend.complete(requests, set(known)):
            for index, made_now in completions.items():
                line = {"index": index, "request": digests[index], "completion": made_now.text, "ended": made_now.ended}
                stream.write(format_json(line) + "\n")
            stream.flush()
            known.update(completions)
            made += len(completions)
            bar.update(len(completions) * launch.num_processes)
    seconds = time.perf_counter() - started
    known.update(gather_object(list(known.items())))
    return Completed([known[index] for index in range(len(requests))], made, seconds)


def _read_known(files: Sequence[Path], digests: Sequence[str]) -> dict[int, Completion]:
    known: dict[int, Completion] = {}
    for file in files:
        for entry in read_whole_lines(file):
            if entry["index"] < len(digests) and entry["request"] == digests[entry["index"]]:
                known[entry["index"]] = Completion(entry["completion"], entry["ended"])
    return known


def _digest(request: Request) -> str:
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()[:16]
