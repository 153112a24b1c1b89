"""Adapters that write tell the memory how much attention its entries got, where the evict policy goes by it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import make, memory_of, tokens  # noqa: E402


@torch.no_grad()
def test_the_mass_that_is_told_is_the_mass_that_was_given():
    model = make("llama")
    memory = memory_of(model, evict=mx.AttentionMass())
    given = dict.fromkeys(memory.layers, 0.0)
    hits = dict.fromkeys(memory.layers, 0)
    with mx.hf.attach(model, memory, top_k=5, trace=True) as a:
        cache = a.cache(window=6, sinks=2)
        for step in tokens(2, 40).split(8, dim=1):
            model(step, past_key_values=cache, use_cache=True)
            for layer, found in a.trace.items():
                given[layer] += float((found.mass.astype(np.float64) * found.share[..., None]).sum())
                hits[layer] += int((found.ids >= 0).sum())
    for layer in memory.layers:
        stats = memory[layer].stats()
        assert stats.touches == hits[layer] > 0
        assert stats.mass == pytest.approx(given[layer], rel=1e-5)


@torch.no_grad()
def test_what_was_attended_to_last_is_kept_and_fifo_would_let_it_go():
    model = make("llama")
    gone = 0
    for evict in ("lru", mx.Lru(sinks=1)):
        memory = memory_of(model, evict=evict, capacity=12)
        with mx.hf.attach(model, memory, top_k=2, trace=True) as a:
            cache = a.cache(window=4, sinks=1)
            for step in tokens(1, 60).split(1, dim=1):
                model(step, past_key_values=cache, use_cache=True)
                for layer, found in a.trace.items():
                    bank = memory[layer]
                    # One group of query heads a lane: ids of the lane, all touched by the newest version.
                    for head in range(bank.heads):
                        group = found.ids.shape[1] // bank.heads
                        read = set(found.ids[0, head * group : (head + 1) * group].ravel().tolist()) - {-1}
                        ids = bank.search(np.zeros((1, bank.heads, 1, bank.key_dim), np.float32), 12).ids[0, head, 0]
                        assert read <= set(ids.tolist())
                        gone += min(read, default=60) < bank.find()[0].max() - 11
    assert gone > 0, "entries were read that the oldest-first rule had ended"


@torch.no_grad()
def test_nobody_counts_what_nobody_asks_for():
    model = make("llama")
    memory = memory_of(model, capacity=12)
    with mx.hf.attach(model, memory, top_k=4) as a:
        cache = a.cache(window=4, sinks=1)
        for step in tokens(1, 30).split(3, dim=1):
            model(step, past_key_values=cache, use_cache=True)
    assert all(memory[layer].stats().touches == 0 for layer in memory.layers)


@torch.no_grad()
def test_a_failed_write_leaves_no_touches(monkeypatch):
    model = make("llama")
    memory = memory_of(model, evict="lru")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with mx.hf.attach(model, memory, top_k=2, write="all") as a:
        model(tokens(1, 6))
        a.commit()
        with monkeypatch.context() as patch:
            patch.setattr("mnemex.hf.forward.stage_tokens", fail)
            with pytest.raises(MemoryError):
                model(tokens(1, 4))
        memory.reset()  # refused while anything is staged
    with mx.hf.attach(model, memory, top_k=2) as a:
        cache = a.cache(window=3, sinks=0)
        model(tokens(1, 9), past_key_values=cache, use_cache=True)
        with monkeypatch.context() as patch:
            patch.setattr("mnemex.hf.cache.stage_tokens", fail)
            with pytest.raises(MemoryError):
                model(tokens(1, 4), past_key_values=cache, use_cache=True)
        memory.reset()


@torch.no_grad()
def test_write_all_stages_use_beside_tokens_and_a_failed_pass_stages_nothing():
    model = make("llama")
    memory = memory_of(model, evict="lfu")
    with mx.hf.attach(model, memory, top_k=3, write="all") as a:
        model(tokens(1, 8))
        a.commit()
        assert memory[memory.layers[0]].stats().touches == 0
        model(tokens(1, 4, seed=1))
        a.commit()
        before = memory[memory.layers[0]].stats().touches
        assert before > 0
        hook = model.model.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens(1, 4, seed=2))
        hook.remove()
        a.commit()
        assert memory[memory.layers[0]].stats().touches == before


@torch.no_grad()
def test_a_window_that_nothing_leaves_has_nothing_pending():
    model = make("llama")
    memory = memory_of(model, evict="lru")
    with mx.hf.attach(model, memory, top_k=2) as a:
        cache = a.cache(window=4, sinks=0)
        model(tokens(1, 9), past_key_values=cache, use_cache=True)
        cache.crop(-2)
        model(tokens(1, 1, seed=4), past_key_values=cache, use_cache=True)
        memory.reorder([0])  # refused while anything is staged
        assert memory[memory.layers[0]].stats().touches > 0
