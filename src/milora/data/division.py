"""Which rows are held out, and how often each of the others is seen in an epoch.

Digests of a seed and a row's text decide both: the held-out rows do not depend on the order of rows and files, and rows
with the same text are treated alike.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

ENCODER = json.JSONEncoder(sort_keys=True)  # json.dumps with an option builds one for every call


def digest_text(messages: Any, seed: int) -> bytes:
    """Return a digest of the seed and a row's messages, which are plain data; the same messages have the same one."""
    return hashlib.sha256(f"{seed} {ENCODER.encode(messages)}".encode()).digest()


def draw_held_out(digests: Sequence[bytes], count: int) -> list[int]:
    """Return the indices of `count` different rows, in order: those of the lowest digests, each at its first place."""
    first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    return sorted(first[digest] for digest in sorted(first)[:count])


def draw_training(
    sources: Sequence[Sequence[bytes]], weights: Sequence[float], held_out: set[bytes]
) -> list[list[int]]:
    """Return the indices of the rows of each source in an epoch, without the texts that are held out.

    A row of a source of weight 2 is there twice; 0.5 draws half of the rows: the highest digests, because the lowest
    are held out.
    """
    drawn, start = [], 0
    for digests, weight in zip(sources, weights, strict=True):
        kept = [index for index, digest in enumerate(digests) if digest not in held_out]
        times, share = divmod(weight, 1)
        part = sorted(kept, key=lambda index: digests[index], reverse=True)[: round(share * len(kept))]
        drawn.append([start + index for index in kept * int(times) + sorted(part)])
        start += len(digests)
    return drawn


def shuffle(indices: Sequence[int], seed: int) -> list[int]:
    """Return the indices in an order that the seed decides."""
    shuffled = list(indices)
    random.Random(seed).shuffle(shuffled)
    return shuffled
