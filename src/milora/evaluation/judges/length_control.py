"""AlpacaEval 2.0's length-controlled win rate (Dubois et al. 2024): what a judge would prefer at equal lengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from milora.evaluation.scores import Metric

FOLDS, SEED = 5, 123  # the package's
STRENGTHS = np.logspace(-4, 4, 10)  # of which cross-validation chooses the inverse of the penalty
WEIGHT = 0.1  # of each row of the two gamed models: half of the published 0.2
TINY = 1e-15


@dataclass(frozen=True, slots=True)
class Judged:
    """One instruction: the preference for the model's output, 0 … 1, or None; and by how many characters it is shorter.

    `difficulty` is the published one of the instruction; None in the minimal form.
    """

    preference: float | None
    shorter_by: float
    difficulty: float | None = None


def length_controlled(items: Sequence[Judged], gamed: Sequence[Judged]) -> Metric:
    """Return the mean preference that a logistic model predicts if both outputs had the same length.

        logit p = w₁·tanh(Δ/sd(Δ)) + w₂·difficulty + w₃        fitted with an L1 penalty, predicted with Δ = 0

    The `gamed` rows, of the baseline asked to be concise and verbose, have their Δ in units of sd already and no w₃;
    they keep w₁ and w₂ near the baseline's. Without them and difficulties it is the minimal form. The standard error is
    the published one, of the predictions over instructions.
    """
    spread = stdev(item.shorter_by for item in items) or 1.0
    own = [_features(item, item.shorter_by / spread, own=1.0) for item in items]
    known = [index for index, item in enumerate(items) if item.preference is not None]
    features = np.array(
        [*(_features(item, item.shorter_by, own=0.0) for item in gamed), *(own[index] for index in known)]
    )
    targets = np.array([item.preference for item in (*gamed, *(items[index] for index in known))], dtype=float)
    weights = np.array([WEIGHT] * len(gamed) + [1.0] * len(known))
    coefficients = _fit(features, targets, weights)
    level = np.array(own)
    level[:, 0] = 0.0
    predicted = [float(value) for value in _logistic(level @ coefficients)]
    return Metric(fmean(predicted), stdev(predicted) / math.sqrt(len(predicted)))


def _features(item: Judged, length: float, *, own: float) -> list[float]:
    return [math.tanh(length), *([] if item.difficulty is None else [item.difficulty]), own]


def _fit(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logistic regression on soft targets, its penalty by cross-validation; each row is there once for each label."""
    from sklearn.model_selection import GroupKFold  # slow to import

    rows = np.concatenate([np.arange(len(targets))] * 2)
    folds = list(GroupKFold(FOLDS).split(rows, groups=rows))

    def loss(strength: float) -> float:
        losses = []
        for training, test in folds:
            kept, held_out = np.unique(rows[training]), np.unique(rows[test])
            coefficients = _fit_once(features[kept], targets[kept], weights[kept], strength)
            predicted = np.clip(_logistic(features[held_out] @ coefficients), TINY, 1 - TINY)
            wanted = targets[held_out]
            each = wanted * np.log(predicted) + (1 - wanted) * np.log(1 - predicted)
            losses.append(-float(np.mean(weights[held_out] * each)))
        return fmean(losses)

    return _fit_once(features, targets, weights, min(STRENGTHS, key=loss))


def _fit_once(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(l1_ratio=1, solver="liblinear", C=strength, fit_intercept=False, random_state=SEED)
    labels = np.repeat([1, 0], len(targets))
    model.fit(
        np.concatenate([features, features]),
        labels,
        sample_weight=np.concatenate([targets * weights, (1 - targets) * weights]),
    )
    coefficients: np.ndarray = model.coef_[0]
    return coefficients


def _logistic(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.exp(-np.logaddexp(0, -x))
    return result
