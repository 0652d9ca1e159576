"""Targets → the spectra of their base's weights, and what each adapter did to them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from milora.evaluation.forgetting import CROSS_ENTROPY, FLOOR, FORGETTING, check_text, make_blocks
from milora.evaluation.scores import Scores
from milora.evaluation.target import Target
from milora.method.analysis.activity import measure_activity
from milora.method.analysis.matrices import Matrix, Update, find_matrices, find_updates
from milora.method.analysis.spectrum import WeightFigures, find_spectrum, measure_weight
from milora.method.analysis.update import UpdateFigures, measure_update
from milora.method.coverage import measure_coverage
from milora.method.errors import MiloraError
from milora.method.factors import BAR
from milora.models.base import attach_adapter, context_length, load_model
from milora.models.methods import put_adapter
from milora.run.directory import list_scores
from milora.run.environment import Environment, describe_environment
from milora.run.launch import count_processes, processes
from milora.run.sections import ForgettingSection

RANK = 64  # of a model without an adapter: the paper's for mathematics
TEXT = ForgettingSection(block_count=4, block_length=128)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The finished score of the task forgetting, and the text that it is on."""

    cross_entropy: float
    floor: float
    text: str


@dataclass(frozen=True, slots=True)
class AdapterFigures:
    """What one adapter did.

    Attributes:
        name: the method of a run if no other target has it, else the run's or the folder's name.
        norm: ‖ΔW‖ (Frobenius) over all weights.
        weights: the figures of each weight by name.
        activity: E‖ΔW h‖² / E‖W h‖² by the weight's name, on text; not of experts.
        others: adapted layers whose update is not a product of two factors, such as those of embeddings.
        forgetting: its score, if it was scored on a text that all of them were scored on.
    """

    name: str
    norm: float
    weights: dict[str, UpdateFigures]
    activity: dict[str, float]
    others: list[str]
    forgetting: Forgotten | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an inspection found: the figures of the base's weights, and of adapters of it."""

    model: str
    dtype: str
    text: str | None
    weights: dict[str, WeightFigures]
    adapters: list[AdapterFigures]
    environment: Environment


def inspect(
    targets: Sequence[Target], *, rank: int | None = None, exact: bool = False, text: str | None = None
) -> Inspection:
    """Return what is found about a model's weights, or about adapters of one base and the weights that they are on.

    Args:
        targets: a model, or runs, checkpoints and adapters.
        rank: r, how many components and directions are looked at; None: the adapters' own.
        exact: decompose every weight completely, also where that takes long.
        text: a text file for the activity of adapters; None: text that the base generates.

    Raises:
        MiloraError: targets do not go together, an adapter is not a LoRA, or a weight cannot be decomposed.
    """
    _check_targets(targets)
    section = TEXT.model_copy(update={"text": text}) if text else TEXT
    tokenizer, model = targets[0].load_tokenizer(), targets[0].base.model
    check_text(section, tokenizer, context_length(model, tokenizer))
    base = load_model(model).to(processes().device)
    if targets[0].adapter is None:
        matrices = _matrices_of(base)
        weights, _ = _measure(matrices, {}, _choose_ranks(matrices, {}, rank or RANK), exact)
        return Inspection(model.name, model.dtype, None, weights, [], describe_environment())
    matrices, updates, others = {}, {}, {}
    for name, target in zip(_name(targets), targets, strict=True):
        assert target.adapter is not None
        tuned = attach_adapter(base, target.adapter)  # in intact form: of a residual run, too
        matrices |= find_matrices(tuned)
        updates[name], others[name] = find_updates(tuned)
        base = tuned.unload()
    ranks = _choose_ranks(matrices, updates, rank)
    blocks = make_blocks(section, targets[0].base, base, tokenizer).to(base.device)
    activity = _measure_activity(base, matrices, updates, blocks)
    weights, found = _measure(matrices, updates, ranks, exact)
    forgotten = _read_forgetting(dict(zip(updates, targets, strict=True)))
    adapters = [
        AdapterFigures(
            name,
            sum(figures.norm**2 for figures in found[name].values()) ** 0.5,
            found[name],
            activity[name],
            others[name],
            forgotten.get(name),
        )
        for name in updates
    ]
    return Inspection(model.name, model.dtype, section.text, weights, adapters, describe_environment())


def _measure_activity(
    base: PreTrainedModel,
    matrices: Mapping[str, Matrix],
    updates: Mapping[str, Mapping[str, Update]],
    blocks: Tensor,
) -> dict[str, dict[str, float]]:
    """Return the activity of each adapter by the weight's name; the modules of experts are not hooked."""
    modules = {matrix.module: name for name, matrix in matrices.items() if matrix.module}
    applied = {name: {m: found[w] for m, w in modules.items() if w in found} for name, found in updates.items()}
    activity = measure_activity(base, applied, (block[None] for block in blocks))
    return {name: {modules[module]: value for module, value in found.items()} for name, found in activity.items()}


def _check_targets(targets: Sequence[Target]) -> None:
    if count_processes() > 1:
        raise MiloraError("milora inspect runs in one process", "start it without a launcher")
    whole = [target for target in targets if target.adapter is None]
    for target in whole:
        if target.recipe is not None:
            raise MiloraError(
                f"{target.model.name} is a whole model: full fine-tuning leaves no factors to inspect",
                "name a run of another method",
            )
    if whole and len(targets) > 1:
        raise MiloraError(
            f"{whole[0].served} is a model, which is inspected alone",
            "name one model, or runs and adapters of one base",
        )
    bases = {target.base.digest: target.base.model for target in targets}
    if len(bases) > 1:
        named = ", ".join(f"{model.name} in {model.dtype}" for model in bases.values())
        raise MiloraError(f"the targets have different bases: {named}", "name adapters of one base, in one dtype")


def _name(targets: Sequence[Target]) -> list[str]:
    names = [target.recipe.adapter.method if target.recipe else target.served for target in targets]
    for better in ([target.served for target in targets], [str(target.adapter) for target in targets]):
        if max(Counter(names).values()) > 1:
            names = better
    if max(Counter(names).values()) > 1:
        raise MiloraError(f"{Counter(names).most_common(1)[0][0]} is named twice", "name each target once")
    return names


def _matrices_of(base: PreTrainedModel) -> dict[str, Matrix]:
    """Return the linear weights of a model except those of its head, and the experts of a mixture."""
    config = LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = put_adapter(base, config)
    experts = measure_coverage(model, "default").experts
    if experts:
        config.target_parameters = experts
        model = put_adapter(model.unload(), config)
    return find_matrices(model)


def _measure(
    matrices: Mapping[str, Matrix], updates: Mapping[str, Mapping[str, Update]], ranks: Mapping[str, int], exact: bool
) -> tuple[dict[str, WeightFigures], dict[str, dict[str, UpdateFigures]]]:
    """Return the figures of each weight, and of each adapter's update of it; one weight is read at a time."""
    weights: dict[str, WeightFigures] = {}
    found: dict[str, dict[str, UpdateFigures]] = {adapter: {} for adapter in updates}
    costs = {name: max(matrix.shape) * min(matrix.shape) ** 2 for name, matrix in matrices.items()}
    with tqdm(total=sum(costs.values()), desc="inspecting", disable=None, bar_format=BAR) as bar:
        for name, matrix in matrices.items():
            mine = {adapter: one[name] for adapter, one in updates.items() if name in one}
            W = matrix.read()
            try:
                spectrum = find_spectrum(W, ranks[name], exact=exact)
            except MiloraError as error:
                raise MiloraError(f"{name}: {error.message}", error.hint) from error
            weights[name] = measure_weight(W, spectrum)
            for adapter, update in mine.items():
                found[adapter][name] = measure_update(W, spectrum, update.up, update.down)
            bar.set_postfix_str(name, refresh=False)
            bar.update(costs[name])
    return weights, found


def _choose_ranks(
    matrices: Mapping[str, Matrix], updates: Mapping[str, Mapping[str, Update]], rank: int | None
) -> dict[str, int]:
    """Return r of each weight: the given one, else that of the adapters on it; at most what the weight has."""
    found = {}
    for name, matrix in matrices.items():
        own = {adapter: one[name].rank for adapter, one in updates.items() if name in one}
        if rank is None and len(set(own.values())) > 1:
            said = ", ".join(f"{adapter} {value}" for adapter, value in own.items())
            raise MiloraError(f"{name}: the adapters have different ranks ({said})", "choose one with --rank")
        found[name] = min(rank or next(iter(own.values())), *matrix.shape)
    return found


def _read_forgetting(targets: Mapping[str, Target]) -> dict[str, Forgotten]:
    """Return each adapter's score on a text that all were scored on; nothing if there is none."""
    found: dict[str, dict[str, Forgotten]] = {}
    for name, target in targets.items():
        for folder in list_scores(target.folder, target.who, FORGETTING):
            scores = folder.read(Scores)
            if scores.settings.model == target.digest:
                cross_entropy, floor = (scores.metrics[metric].value for metric in (CROSS_ENTROPY, FLOOR))
                text = scores.settings.text or ""
                found.setdefault(f"{text} {scores.settings.data}", {})[name] = Forgotten(cross_entropy, floor, text)
    return next((scores for scores in found.values() if len(scores) == len(targets)), {})
