"""The run directory: one recipe, and all its results. No other file spells the name of a file in it.

runs/<name>-<digest>/
  recipe.yaml           what the recipe changes of the defaults
  identity.json         the digest of everything that decides the weights
  environment.json      versions, hardware, commit
  initialization.json   what the initialization found
  start.json            how long it took
  spectra.json          singular values of a few weights, for the report
  alignment/            the run of the first stage, if there is one
  checkpoints/          the trainer's, while it trains; complete.json says that one is whole
  tensorboard/
  adapter/              the trained adapter
  model/                instead of it, of full fine-tuning
  training.json         written last: training is complete
  divergence.json       instead of it, if training diverged
  evaluation/<who>/<task>/<settings>/{scores.json, samples.jsonl, completions-*.jsonl}
                        task: also held-out, the answers to held-out rows of a run without tasks
                        who: base, trained, checkpoint-N; with a judge also judgments.jsonl, and AlpacaEval's own files
  export/<form>/        lora, merged or residual; of a checkpoint, <form>-checkpoint-N
  inspection/           what `milora inspect` found: index.html, inspection.json, and charts
  report.html
  worker.log, cell.json in a comparison: what the process said, and that all is done
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from milora.method.errors import MiloraError
from milora.method.files import write_json, write_text
from milora.method.options import Export
from milora.run.environment import Environment, describe_environment
from milora.run.identity import FORMAT, Identity
from milora.run.launch import is_main_process
from milora.run.recipe import Recipe, load_recipe
from milora.run.records import CheckpointMark, Divergence, Start

Record = TypeVar("Record")
RECIPE = "recipe.yaml"
ALIGNMENT = "alignment"
CHECKPOINT = "checkpoint-"  # transformers' own name, before the step

# By name, so that to list runs no library of training is imported.
FILES = {
    "Identity": "identity.json",
    "Environment": "environment.json",
    "InitializationReport": "initialization.json",
    "Start": "start.json",
    "Spectra": "spectra.json",
    "CheckpointMark": "complete.json",
    "TrainingRecord": "training.json",
    "Divergence": "divergence.json",
    "Scores": "scores.json",
    "CellRecord": "cell.json",
}


def adapter_of(kind: type[Record]) -> TypeAdapter[Record]:
    """Return what validates a type; it takes far longer to make than to use."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


_adapters: dict[type, TypeAdapter[Any]] = {}


@dataclass(frozen=True, slots=True)
class RecordFolder:
    """A folder of typed records, one JSON file for each type."""

    path: Path

    def has(self, kind: type) -> bool:
        return (self.path / FILES[kind.__name__]).is_file()

    def read(self, kind: type[Record]) -> Record:
        """Read the record of this type.

        Raises:
            MiloraError: the file is not what this version of milora writes.
        """
        file = self.path / FILES[kind.__name__]
        try:
            return adapter_of(kind).validate_json(file.read_bytes())
        except ValueError as error:
            reason = str(error).replace("\n", " ")
            raise MiloraError(
                f"{file} cannot be read: {reason}", "delete it, and run the same command again"
            ) from error

    def write(self, record: Any) -> None:
        """Write a record, if this is the main process of its launch."""
        if is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / FILES[type(record).__name__], to_jsonable_python(record))


@dataclass(frozen=True, slots=True)
class ScoreFolder(RecordFolder):
    """The scores of one model on one task under one setting, with every sample and every completion."""

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    def completions(self, process: int) -> Path:
        return self.path / f"completions-{process}.jsonl"

    def all_completions(self) -> list[Path]:
        return sorted(self.path.glob("completions-*.jsonl"))

    @property
    def judgments(self) -> Path:
        """A judge's answers, as they came."""
        return self.path / "judgments.jsonl"

    @property
    def outputs(self) -> Path:
        """Completions as AlpacaEval's leaderboard takes them."""
        return self.path / "model_outputs.json"

    @property
    def annotations(self) -> Path:
        """Verdicts as AlpacaEval writes them."""
        return self.path / "annotations.json"

    def upload(self, ending: str) -> Path:
        """Completions as a benchmark's server takes them."""
        return self.path / f"upload{ending}"

    def forget(self) -> None:
        """Delete the scores first, which say that all is there, and then what they were made of."""
        for file in (self.path / FILES["Scores"], self.samples, *self.all_completions()):
            file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RunDirectory(RecordFolder):
    recipe: Recipe

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def trained(self) -> Path:
        """What training wrote: the adapter, or the whole model after full fine-tuning."""
        return self.model if self.recipe.adapter.method == "full" else self.adapter

    @property
    def alignment(self) -> Path:
        """Where the first stage is: a run directory in a folder."""
        return self.path / ALIGNMENT

    @property
    def has_started(self) -> bool:
        """Whether training has begun, be it in the first stage."""
        return self.has(Start) or any(self.alignment.glob(f"*/{FILES['Start']}"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def last_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, whether it is whole or not; None if there is none."""
        return max(self.checkpoints.glob(f"{CHECKPOINT}*"), key=step_of, default=None)

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def score_folders(self, who: str) -> list[ScoreFolder]:
        """Every task under every setting that `who` was scored on; see `locate_scores`."""
        return [ScoreFolder(path) for path in sorted((self.evaluation / who).glob("*/*"))]

    @property
    def inspection(self) -> Path:
        return self.path / "inspection"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def is_trained(self) -> bool:
        return (self.path / FILES["TrainingRecord"]).is_file()

    @property
    def is_diverged(self) -> bool:
        """Whether its last training diverged."""
        return self.has(Divergence) and not self.is_trained


def locate_scores(root: Path, who: str, task: str, settings: str) -> ScoreFolder:
    """Return where the scores of `who` on a task go; those under other settings, by digest, are kept beside them."""
    return ScoreFolder(root / who / task / settings)


def list_scores(root: Path, who: str, task: str) -> list[ScoreFolder]:
    """Return the folders of a task's finished scores, one for each setting."""
    found = [ScoreFolder(path) for path in sorted((root / who / task).glob("*"))]
    return [folder for folder in found if (folder.path / FILES["Scores"]).is_file()]


def locate_export(folder: Path, form: Export, checkpoint: str = "") -> Path:
    """Return where the exports of a run, a checkpoint of it, or an adapter's folder go."""
    return folder / "export" / (f"{form}-{checkpoint}" if checkpoint else form)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a trainer's checkpoint was written."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def locate_run(recipe: Recipe, identity: Identity, root: Path) -> RunDirectory:
    """Return the recipe's directory under `root`, whether it exists or not; see `create_run`."""
    return RunDirectory(root / f"{recipe.name}-{identity.training}", recipe)


def create_run(run: RunDirectory) -> RunDirectory:
    """Make a located run's directory, or complete the existing one; the main process does."""
    if is_main_process():
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.has(Identity):
            run.write(Identity(FORMAT, run.path.name.rpartition("-")[2]))
        write_text(run.path / RECIPE, run.recipe.to_yaml())
        if not run.has(Environment):
            run.write(describe_environment())
    return run


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory, of this format or an earlier one."""
    return (path / RECIPE).is_file()


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a user allows on the command line: a run directory may be someone else's, and cannot allow it itself."""

    trust_remote_code: bool
    allow_code_execution: bool


NOTHING = Permissions(trust_remote_code=False, allow_code_execution=False)
EVERYTHING = Permissions(trust_remote_code=True, allow_code_execution=True)


def open_run(path: Path, permissions: Permissions = NOTHING) -> RunDirectory:
    """Open an existing run directory; its recipe may run programs that a model writes only if `permissions` say so.

    Raises:
        MiloraError: the folder is not a run directory, another version of milora made it, or its model's own code would
            run without permission.
    """
    if not is_run(path):
        raise MiloraError(f"{path} is not a run directory: it has no {RECIPE}", "name one that `milora train` made")
    folder = RecordFolder(path)
    made_by = folder.read(Identity).format if folder.has(Identity) else 1
    if made_by != FORMAT:
        raise MiloraError(
            f"{path} was made by another version of milora: its format is {made_by}, and this version reads {FORMAT}",
            "train it again, or use the version that made it (environment.json names its commit)",
        )
    recipe = load_recipe(str(path / RECIPE))
    if recipe.model.trust_remote_code and not permissions.trust_remote_code:
        raise MiloraError(
            f"the recipe of {path} runs the code that comes with the model {recipe.model.name}",
            "pass --trust-remote-code if you trust both",
        )
    allowed = recipe.evaluation.allow_code_execution and permissions.allow_code_execution
    evaluation = recipe.evaluation.model_copy(update={"allow_code_execution": allowed})
    return RunDirectory(path, recipe.model_copy(update={"evaluation": evaluation}))


def is_whole(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint were written; a process may have been killed before."""
    folder = RecordFolder(checkpoint)
    return folder.has(CheckpointMark) and all(
        (checkpoint / name).is_file() for name in folder.read(CheckpointMark).files
    )


def run_of_checkpoint(path: Path, permissions: Permissions = NOTHING) -> RunDirectory | None:
    """Return the run whose trainer wrote this checkpoint, None if it is not a checkpoint of a run; see `open_run`."""
    return _open_above(path, "checkpoints", permissions) if path.name.startswith(CHECKPOINT) else None


def run_of_export(path: Path, permissions: Permissions = NOTHING) -> RunDirectory | None:
    """Return the run that a folder was exported from, None if it is not RUN/export/FORM; see `open_run`."""
    return _open_above(path, "export", permissions)


def _open_above(path: Path, folder: str, permissions: Permissions) -> RunDirectory | None:
    parent = path.resolve().parent
    return open_run(parent.parent, permissions) if parent.name == folder and is_run(parent.parent) else None
