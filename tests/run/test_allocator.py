"""glibc is told to keep large blocks; other C libraries are left alone."""

import platform

import pytest

from milora.run import allocator
from milora.run.allocator import keep_large_blocks


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_glibc_accepts_the_thresholds():
    assert keep_large_blocks()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("it was asked"))
    assert not keep_large_blocks()
