"""What recipes return, and the one that needs no model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import mnemex as mx


def test_parts_are_arguments_and_stay_as_they_are():
    parts = mx.recipes.memory_bank(capacity=5)
    assert isinstance(parts, mx.recipes.Parts)
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.bank = {}
    assert (parts.attach, parts.cache) == ({}, {})
    other = dataclasses.replace(parts, bank={**parts.bank, "evict": "fifo"})
    for which, wants_use in ((parts, True), (other, False)):
        bank = mx.Bank(key_dim=3, **which.bank)
        assert (bank.metric, bank.capacity, bank.wants_use) == ("cos", 5, wants_use)


def test_memory_bank_forgets_what_is_least_retained():
    rng = np.random.default_rng(0)
    bank = mx.Bank(key_dim=6, **mx.recipes.memory_bank(capacity=8, strength=2.0).bank)
    kept, recalled = {}, 0  # id: key, strength, day of the last recall
    for day in range(1, 60):
        queries = rng.standard_normal((rng.integers(0, 3), 6), dtype=np.float32)
        if day > 1 and len(queries):
            hits = bank.search(queries, 1)
            bank.touch(hits)
            for query, ids in zip(queries, hits.ids, strict=True):
                cosines = {i: key @ query / np.linalg.norm(key) for i, (key, _, _) in kept.items()}
                assert int(ids[0]) == max(cosines, key=cosines.get)
            for id_ in hits.ids[:, 0].tolist():
                key, strength, _ = kept[id_]
                kept[id_] = key, strength + 1, day
                recalled += 1
        key = rng.standard_normal((1, 6), dtype=np.float32)
        new = int(bank.stage(key)[0])
        kept[new] = key[0], 2.0, day
        bank.commit()
        if len(kept) > 8:
            retained = {i: (math.exp(-(day - last) / strength), i) for i, (_, strength, last) in kept.items()}
            del kept[min(retained, key=retained.get)]
        assert bank.find()[0].tolist() == sorted(kept)
    assert recalled > 20
    assert min(kept) < 50, "what was recalled outlived newer memories"
