"""Tokens per second, utilization, and where they are shown."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from milora.training.prepare import Preparation
from milora.training.speed import Speed, find_peak
from tests.conftest import make_llama, make_qwen


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12)],
)
def test_peaks_by_name(device, peak):
    assert find_peak(device) == peak and find_peak("AMD EPYC") is None


@pytest.mark.parametrize(("make", "is_tied"), [(make_qwen, False), (lambda: make_llama(tied=True), True)])
def test_operations_are_four_for_a_frozen_weight_and_six_for_a_trained_one(make, is_tied):
    model = make()
    total, looked_up = model.num_parameters(), model.get_input_embeddings().weight.numel()
    speed = Speed(Preparation(model, 100, total, None, None, "padded", None), "float32")
    assert speed.operations == 4 * (total - 100 - (0 if is_tied else looked_up)) + 6 * 100
    assert speed.measure() == {} and speed.tokens_per_second is None and speed.mfu is None
    speed.seconds, speed.tokens, speed.peak = 2.0, 100.0, 1e9
    assert speed.mfu == pytest.approx(50 * speed.operations / 1e9)
    assert speed.measure()["tokens_per_second"] == 50


def test_the_speed_is_in_the_record_the_report_and_tensorboard(finished):
    _, run = finished
    record = json.loads((run / "training.json").read_text())
    steps = record["tokens_per_step"] * record["steps"] / record["tokens_per_second"]
    assert 0 < steps < record["seconds"], "evaluations do not count"
    assert record["mfu"] is None or 0 < record["mfu"] < 1
    assert f"{record['tokens_per_second']:,.0f} real tokens per second" in (run / "report.html").read_text()
    (events,) = [path.parent for path in (run / "tensorboard").rglob("events*")][:1]
    found = EventAccumulator(str(events))
    found.Reload()
    expected = {"train/loss", "train/tokens_per_second", "train/peak_memory_gb", "train/update_norm"}
    assert expected <= set(found.Tags()["scalars"])
    # The last one is logged after the last step, whose adapter is the one that is kept.
    norm = found.Scalars("train/update_norm")[-1].value
    assert norm == pytest.approx(record["weight_change"], rel=1e-4)
