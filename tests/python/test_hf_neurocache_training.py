"""A Neurocache that a model learns to use: how it starts, what it learns, which rows forget, what it stands beside."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import left_padded, make, tokens  # noqa: E402


def llama():
    return make("llama", num_hidden_layers=4)


def test_projections_start_from_those_of_each_layer():
    model = llama()
    with mx.hf.attach_neurocache(model, layer=2, compression=4) as a:
        for block, layer in zip(a.cache.blocks, model.model.layers[2:], strict=True):
            assert torch.equal(block.query.weight, layer.self_attn.q_proj.weight)
            assert torch.equal(block.key.weight, layer.self_attn.k_proj.weight[:, :8])
            assert torch.equal(block.value.weight, layer.self_attn.v_proj.weight[:, :8])
        assert {id(p) for p in a.parameters()}.isdisjoint(map(id, model.parameters()))


def test_a_frozen_model_learns_to_use_what_it_read_before():
    model, text = llama(), tokens(1, 24)
    model.requires_grad_(False)
    torch.manual_seed(0)
    with mx.hf.attach_neurocache(model, layer=1, k=4, raw=True) as a:
        optimizer = torch.optim.AdamW(a.parameters(), lr=1e-2)
        losses = []
        for _ in range(45):
            a.reset()
            for _ in range(2):
                loss = model(text, labels=text).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        a.reset()
        # Nothing is remembered: the parameters alone do not know the text.
        assert model(text, labels=text).loss.item() > 1.4 * losses[-1]


@torch.no_grad()
def test_rows_are_forgotten_alone():
    model = llama()
    with mx.hf.attach_neurocache(model) as a:
        model(**left_padded([3, 0], 8))
        assert a.cache.bank.lengths[:, 0].tolist() == [5, 8]
        a.reset([0])
        assert a.cache.bank.lengths[:, 0].tolist() == [0, 8]
        with pytest.raises(mx.ShapeError, match=r"reset\(\) first"):
            model(tokens(1, 4))
        a.reset()
        model(tokens(1, 4))
        assert len(a.cache.bank) == 4


@torch.no_grad()
def test_it_stands_beside_a_memory():
    model, text = llama(), tokens(1, 20)
    memory = mx.Memory.for_model(model)
    with mx.hf.attach(model, memory, top_k=4) as a, mx.hf.attach_neurocache(model) as b:
        a.ingest(text, chunk=8)
        assert len(b.cache.bank) == 20
        assert len(memory[0]) == 40
