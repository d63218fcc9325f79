"""A hash of text that is the same in every process, version and machine."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
WORD = 8


def hash64(texts: pa.Array | pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """64-bit hashes: ``[N]`` uint64, that of a null being that of an empty text.

    Words of eight bytes are mixed in one after the other by SplitMix64 (Steele, Lea and Flood 2014). It spreads keys
    evenly over partitions and buckets; it is no protection against who wants collisions.
    """
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    array = pc.fill_null(array.cast(pa.large_string()), "")
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(offsets)
    starts, data = offsets[:-1], array.buffers()[2]
    padded = np.concatenate(
        [np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), np.zeros(WORD, np.uint8)]
    )
    # Every eight bytes of the buffer, wherever they begin, as one number.
    words = np.ndarray((max(1, len(padded) - WORD + 1),), "<u8", padded, strides=(1,))
    state = mix64(lengths.astype(np.uint64) + np.uint64(seed * int(GOLDEN) % (1 << 64)))
    longest, everyone = int(lengths.max(initial=0)), np.arange(len(array))
    for position in range(0, longest, WORD):
        rows = everyone if position == 0 else np.flatnonzero(lengths > position)
        left = np.minimum(lengths[rows] - position, WORD).astype(np.uint64)
        found = words[np.minimum(starts[rows] + position, len(words) - 1)]
        kept = np.where(
            left > 0,
            found & (np.uint64(0xFFFFFFFFFFFFFFFF) >> ((WORD - left) % WORD * WORD).astype(np.uint64)),
            np.uint64(0),
        )
        state[rows] = mix64(state[rows] ^ kept)
    return state


def mix64(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser of uint64 numbers: every bit of the input changes half of the output."""
    with np.errstate(over="ignore"):
        mixed = numbers + GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
