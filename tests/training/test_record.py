"""What a record measures on systems that are not here."""

import resource
import sys

import pytest

from milora.training import speed


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(platform, unit, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_maxrss": 5000}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert speed.peak_memory() == 5000 * unit
