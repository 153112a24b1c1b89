"""Recipes that read blocks or bound a cache, on a small Llama: against the same thing made in another way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="recipes of decoders need torch")
pytest.importorskip("transformers", reason="recipes of decoders need transformers")

import mnemex as mx  # noqa: E402
from hf_models import gap, make, tokens  # noqa: E402


def llama(**changes):
    return make("llama", num_hidden_layers=3, **changes)


def streamed(model, parts, text, *, chunk: int, **attach):
    """Feed a text through the recipe's cache; all logits, and the memory."""
    memory = mx.Memory.for_model(model, rows=len(text), **parts.bank)
    with mx.hf.attach(model, memory, **parts.attach | attach) as a:
        cache = a.cache(**parts.cache)
        out = [model(some, past_key_values=cache, use_cache=True).logits for some in text.split(chunk, 1)]
    return torch.cat(out, 1), memory


@torch.no_grad()
def test_infllm_reads_all_blocks_where_there_are_few_and_a_few_where_there_are_many():
    model, text = llama(), tokens(2, 60)
    parts = mx.recipes.infllm(n=8, size=8, window=12, sinks=2)
    got, memory = streamed(model, parts, text, chunk=5)
    everything, _ = streamed(model, parts, text, chunk=5, top_k=None)
    assert gap(got, everything) < 1e-5
    assert memory[0].lengths.tolist() == [[47, 47]] * 2
    assert memory[1].gather(np.arange(47)[None].repeat(2, 0), columns=["page"])[2]["page"][0].tolist() == [
        8 * (i // 8) for i in range(47)
    ]
    fewer = mx.recipes.infllm(n=1, size=8, window=12, sinks=2)
    assert gap(streamed(model, fewer, text, chunk=5)[0], everything) > 1e-4


@torch.no_grad()
def test_em_llm_begins_an_event_where_a_token_surprises():
    model, text = llama(), tokens(1, 40)
    parts = mx.recipes.em_llm(n=2, surprise=1.0, window=16, shortest=2, longest=10)
    memory = mx.Memory.for_model(model, **parts.bank)
    past = model(text, use_cache=True).past_key_values
    surprise = np.random.default_rng(0).exponential(1.0, (1, 40)).astype(np.float32)
    events = []
    for layer, bank in ((layer, memory[layer]) for layer in memory.layers):
        keys, values = past.layers[layer].keys, past.layers[layer].values
        bank.stage(keys, values, columns={"surprise": surprise})
        bank.commit()
        events.append(bank.gather(np.arange(40)[None], columns=["page"])[2]["page"][0].tolist())
    first, fresh = [0], 0
    for token in range(1, 40):  # a page begins where one is full, or surprised and no longer short
        before = surprise[0, max(0, token - 16) : token].astype(np.float64)
        surprised = surprise[0, token] > before.mean() + before.std()
        n = token - fresh
        if n >= 10 or (surprised and n >= 2):
            fresh = token
        first.append(fresh)
    assert events == [first] * 3
    with mx.hf.attach(model, memory, **parts.attach) as a:
        question = tokens(1, 4, seed=3)
        read = model(question, position_ids=a.next_position + torch.arange(4)[None]).logits
    assert gap(read, model(question).logits) > 1e-4


def test_longmem_reads_chunks_under_a_gate_that_trains():
    model, text = llama(), tokens(2, 24)
    parts = mx.recipes.longmem(4, 1, capacity=16, k=8, size=4)
    memory = mx.Memory.for_model(model, rows=2, **parts.bank)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        for some in text.split(8, 1):
            with torch.no_grad():
                model(some, use_cache=False)
            a.commit()
        assert memory.layers == (1,) or list(memory.layers) == [1]
        assert memory[1].lengths.tolist() == [[16, 16]] * 2
        loss = model(text[:, :6], labels=text[:, :6], use_cache=False).loss
        loss.backward()
        (gate,) = a.parameters()
        assert gate.grad is not None
        assert float(gate.grad.abs().min()) > 0.0


@torch.no_grad()
def test_pyramid_kv_keeps_less_in_upper_layers_and_its_newest_tokens():
    model, text = llama(), tokens(2, 120)
    parts = mx.recipes.pyramid_kv(3, mean=30, window=6, pool=3)
    _, memory = streamed(model, parts, text, chunk=4)
    room = [int(memory[layer].lengths.min()) for layer in memory.layers]
    assert room == list(mx.pyramid(3, 30, window=6))
    assert sum(room) == 90
    assert room == sorted(room, reverse=True)
    newest = 120 - (6 - 1) - 1
    for layer in memory.layers:
        (ids, _) = memory[layer].find()
        assert set(range(newest - 5, newest + 1)) <= set(ids.tolist())
    fifo = dataclasses.replace(parts, bank={**parts.bank, "evict": mx.Fifo()})
    others = streamed(model, fifo, text, chunk=4)[1]
    assert others[0].find()[0].tolist() != memory[0].find()[0].tolist()


def test_subgen_estimates_attention_over_everything_it_saw():
    parts = mx.recipes.subgen(delta=0.2, reservoir=64)
    rng = np.random.default_rng(0)
    where = rng.standard_normal((5, 8)).astype(np.float32)
    keys = where[rng.integers(0, 5, 200)] + rng.standard_normal((200, 8)).astype(np.float32) / 1000
    values, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (200, 7))
    bank, whole = mx.Bank(key_dim=8, value_dim=8, **parts.bank), mx.Bank(key_dim=8, value_dim=8)
    for some in (bank, whole):
        some.write(keys, values)
    everything = whole.attend(queries, None)
    assert np.abs(bank.attend(queries, None, bias="log_weight").out - everything.out).max() < 1e-5, "all are kept"
    small = mx.Bank(key_dim=8, value_dim=8, **mx.recipes.subgen(delta=0.2, reservoir=2).bank)
    small.write(keys, values)
    assert len(small) == 15
    lse = small.attend(queries, None, bias="log_weight").lse
    assert np.abs(lse - everything.lse).max() < 0.01, "members of a cluster are alike"


def test_moviechat_keeps_a_film_in_as_many_frames_as_it_may():
    parts = mx.recipes.moviechat(short=18, left=2, capacity=20)
    bank = mx.Bank(key_dim=16, value_dim="key", **parts.bank)
    frames = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    for some in np.array_split(frames, 37):
        bank.write(some)
        assert len(bank) <= 20
    (ids,) = bank.find()
    keys, _, columns = bank.gather(ids, columns=["count"])
    assert columns["count"].sum() == 400
    assert np.isfinite(keys).all()
    assert ids.tolist() == sorted(ids.tolist())
