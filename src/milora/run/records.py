"""What a run directory keeps, as types; `RunDirectory` reads and writes them."""

from dataclasses import dataclass, field

from milora.method.options import Layout, TemplateName


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What tokenizing did: rows, tokens, trained tokens; rows cut at the length, rows dropped as no answer fitted.

    `longest` is the number of tokens of the longest row that is left.

    Before that, `bad` rows were dropped because they could not be read, `long` rows left out because they have more
    tokens than `data.max_tokens`, and `copies` because a held-out row has the same text.
    """

    rows: int
    tokens: int
    trained: int
    truncated: int
    dropped: int
    longest: int
    bad: int = 0
    long: int = 0
    copies: int = 0


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters that are trained, those of the whole model, and those in what was saved."""

    trainable: int
    total: int
    stored: int


@dataclass(frozen=True, slots=True)
class StepLoss:
    """A loss at an optimizer step, in nats per token, and the learning rate after the step, None if it is not known."""

    step: int
    loss: float
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """What was measured before the first step."""

    initialization_seconds: float


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A finished training.

    `seconds` count from the last start or resume, at step `resumed_at`. `peak_memory` is in bytes, `weight_change` is
    ‖ΔW‖ over all adapted layers. `held_out_loss` is the loss on held-out rows before and after, `held_out` every one
    that was measured. `kept_step` is the step that was saved. `template` is the one that rows became text with, never
    `auto`; `layout` is how rows shared a forward pass. `tokens_per_second` are real ones of all processes, and `mfu`
    the share of the devices' peak, None where that is not known; see `Speed`.
    """

    seconds: float
    resumed_at: int
    steps: int
    seconds_per_step: float
    tokens_per_step: float
    initialization_seconds: float
    processes: int
    launcher: str
    peak_memory: int
    weight_change: float
    kept_step: int
    template: TemplateName
    layout: Layout
    data: TokenReport
    parameters: ParameterCounts
    held_out_loss: tuple[float, float] | None
    losses: list[StepLoss]
    tokens_per_second: float | None = None
    mfu: float | None = None
    held_out: list[StepLoss] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Why a training stopped: which number was not finite, at which optimizer step and learning rate."""

    what: str
    step: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Spectra:
    """All singular values, descending, of a few weights by name."""

    weights: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class CheckpointMark:
    """Says that a trainer's checkpoint was written whole: its files, and what wrote them."""

    launcher: str
    processes: int
    versions: dict[str, str]
    files: list[str]


@dataclass(frozen=True, slots=True)
class CellRecord:
    """What a comparison notes of a run when everything it asked for is done: how long that took."""

    seconds: float
