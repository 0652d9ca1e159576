"""The conditions that a score holds under: everything that decides it, and the folder that belongs to them."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from milora.data.picture_sets import PICTURE_SETS, find_picture_files, identify_pictures
from milora.data.published import candidates
from milora.data.rows import find_file
from milora.data.sets import NAMED_SETS
from milora.data.templates import CHAT, describe_template
from milora.evaluation.benchmarks import BENCHMARKS, Benchmark
from milora.evaluation.forgetting import FORGETTING, VERSION
from milora.evaluation.generation.served import Served, ask_server
from milora.evaluation.scores import Settings
from milora.evaluation.target import Target
from milora.method.options import TemplateName
from milora.run.directory import ScoreFolder, locate_scores
from milora.run.identity import hash_local
from milora.run.judge import JudgeSection
from milora.run.sections import EvaluationSection


def settings_of(target: Target, name: str, section: EvaluationSection) -> Settings:
    """Return what decides a target's score on a task.

    Raises:
        MiloraError: a server is to answer, and does not.
    """
    if name == FORGETTING:
        return _of_forgetting(target, section)
    if name in BENCHMARKS:
        return _of_benchmark(target, BENCHMARKS[name], section)
    return Settings(
        target.digest,
        f"lm-eval {version('lm-eval')}: {name}",
        prompt=CHAT if section.apply_chat_template else None,
        data=hash_local(Path(name)) if Path(name).is_file() else None,
        limit=section.limit,
        batch_size=section.batch_size,
        backend=section.backend,
        fewshot=section.num_fewshot,
    )


def locate(target: Target, name: str, settings: Settings) -> ScoreFolder:
    """Return the folder of a target's scores on a task under these settings."""
    content = json.dumps(asdict(settings), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return locate_scores(target.folder, target.who, title_of(name), digest)


def title_of(name: str) -> str:
    """The name of a task, or that of the file which defines it."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def template_of(trained: TemplateName | None, section: EvaluationSection) -> TemplateName | None:
    """The template that is asked for, or that the model was trained with; None for the benchmark's official prompt."""
    if section.prompt == "trained":
        return trained
    return None if section.prompt == "official" else section.prompt


def served_by(target: Target, name: str, section: EvaluationSection) -> Served | None:
    """What the server says that a task's completions come from; None if they are made in this process."""
    return ask_server(section.url, target.served) if section.url and name in BENCHMARKS else None


def _of_forgetting(target: Target, section: EvaluationSection) -> Settings:
    asked = section.forgetting
    text = Path(asked.text)
    return Settings(
        target.digest,
        VERSION,
        data=hash_local(text) if text.is_file() else None,
        text=f"{asked.text}: {asked.block_count} blocks of {asked.block_length}",
    )


def _of_benchmark(target: Target, benchmark: Benchmark, section: EvaluationSection) -> Settings:
    template, served = template_of(target.template, section), served_by(target, benchmark.name, section)
    decoding = benchmark.decoding(section.max_new_tokens)
    return Settings(
        target.digest,
        str(benchmark.version),
        prompt=_describe_prompt(benchmark) if template is None else describe_template(template),
        limit=section.limit,
        data=_hash_rows(benchmark, section.data_dir or target.data_dir),
        max_new_tokens=decoding.max_new_tokens,
        beams=decoding.beams,
        stops=decoding.stops,
        batch_size=section.batch_size,
        backend=section.backend,
        server=(served.identity or f"{section.url}, which does not say what it serves") if served else None,
        judge=_describe_judge(section.judge) if benchmark.judged else None,
    )


def _describe_prompt(benchmark: Benchmark) -> str:
    if benchmark.prompt:
        return benchmark.prompt.text
    other = "Vicuna's" if benchmark.has_pictures else "the question alone"
    return f"the model's own chat template, or {other}"


def _describe_judge(section: JudgeSection) -> str:
    """What decides a judge's verdicts."""
    return section.model_dump_json(include={"url", "model", "form", "both_orders"})


def _hash_rows(benchmark: Benchmark, data_dir: str | None) -> str | None:
    """The digests of the rows' file and of what is read beside it, None if they are embedded or published elsewhere."""
    if data_dir is None:
        return None
    if benchmark.set_name in PICTURE_SETS:
        digests = map(hash_local, find_picture_files(benchmark.set_name, data_dir))
        return " ".join([*digests, identify_pictures(benchmark.set_name, data_dir)])
    if benchmark.name not in NAMED_SETS:
        return None
    beside = [path for file in benchmark.files for path in candidates(file, data_dir) if path.is_file()]
    return " ".join(map(hash_local, [find_file(benchmark.name, "test", data_dir), *beside]))
