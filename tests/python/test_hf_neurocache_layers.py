"""A Neurocache beside the attention of decoders: what the model computes, what is stored, what is learned."""

from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
import plain_llama  # noqa: E402
from hf_models import gap, left_padded, make, make_other, tokens  # noqa: E402
from plain_adapters import PlainNeurocache  # noqa: E402


def llama(**changes):
    return make("llama", num_hidden_layers=4, **changes)


def filled(cache):
    """Give the outputs, which start as zeros, weights of their own."""
    with torch.no_grad():
        for block in cache.blocks:
            block.out.weight.normal_(std=0.3)
    return cache


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, "auto"])
def test_layers_add_what_the_one_below_looked_up(layer):
    model, segments = llama(), tokens(2, 30).split(6, 1)
    first = 3 if layer == "auto" else layer
    with mx.hf.attach_neurocache(model, layer=layer, k=3, capacity=14) as a:
        assert a.layers == tuple(range(first, 4))
        cache = filled(a.cache)
        plain = [PlainNeurocache(cache, 14) for _ in range(2)]
        for x in segments:
            met = {}

            def add(index, hidden, met=met):
                if index < first:
                    return torch.zeros_like(hidden)
                met.setdefault(index, hidden)
                if index == first:
                    return torch.stack([of_row.read(h, 0) for of_row, h in zip(plain, hidden, strict=True)])
                # What was found stays that of the layer that looked it up.
                out = []
                for of_row, h, looked in zip(plain, hidden, met[first], strict=True):
                    above = copy.copy(of_row)
                    finds = iter([of_row.finds(token) for token in looked])
                    above.finds = lambda _, finds=finds: next(finds)
                    out.append(above.read(h, index - first))
                return torch.stack(out)

            want = plain_llama.logits(model, x, lambda _, q, k, v, *__: plain_llama.local(q, k, v), add)
            assert gap(model(x).logits, want) < 2e-5
            for of_row, hidden in zip(plain, met[first], strict=True):
                of_row.write(hidden)
            assert cache.bank.lengths[:, 0].tolist() == [len(of_row.states) for of_row in plain]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "smollm3", "gemma2"])
def test_a_model_starts_and_ends_as_it_is(family):
    model, x, y = make(family, **({"n_layer": 4} if family == "gpt2" else {})), tokens(2, 9), tokens(2, 9, seed=1)
    before = [model(z).logits for z in (x, y)]
    a = mx.hf.attach_neurocache(model, layer=1 if family != "gpt2" else 2)
    got = [model(z).logits for z in (x, y)]
    assert all(map(torch.equal, got, before))
    assert len(a.cache.bank) == 36
    filled(a.cache)
    assert gap(model(y).logits, before[1]) > 1e-3
    a.detach()
    a.detach()
    assert torch.equal(model(y).logits, before[1])
    assert len(a.cache.bank) == 54
    assert "detached" in repr(a)


def test_projections_start_from_those_of_each_layer():
    model = llama()
    with mx.hf.attach_neurocache(model, layer=2, compression=4) as a:
        for block, layer in zip(a.cache.blocks, model.model.layers[2:], strict=True):
            assert torch.equal(block.query.weight, layer.self_attn.q_proj.weight)
            assert torch.equal(block.key.weight, layer.self_attn.k_proj.weight[:, :8])
            assert torch.equal(block.value.weight, layer.self_attn.v_proj.weight[:, :8])
        assert {id(p) for p in a.parameters()}.isdisjoint(map(id, model.parameters()))


@pytest.mark.parametrize("raw", [False, True])
def test_it_trains_also_when_layers_are_recomputed(raw):
    gradients = []
    for checkpointed in (False, True):
        model, segments = llama().train(), tokens(2, 24).split(6, 1)
        model.requires_grad_(False)
        if checkpointed:
            model.get_input_embeddings().weight.requires_grad_(True)  # so that layers are recomputed
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(0)
        with mx.hf.attach_neurocache(model, layer=2, k=3, raw=raw) as a:
            filled(a.cache)
            for n, x in enumerate(segments, 1):
                model(x, labels=x, use_cache=False).loss.backward()
                assert len(a.cache.bank) == 12 * n
            gradients.append({name: p.grad for name, p in a.cache.named_parameters()})
    for name, plain in gradients[0].items():
        if plain is None:
            assert not raw
            assert name in ("project.weight", "norm.weight", "norm.bias")
            assert gradients[1][name] is None
        else:
            assert plain.any(), name
            assert gap(gradients[1][name], plain) < 1e-4


def test_training_lowers_the_loss_of_a_text_that_was_read_before():
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
def test_pads_are_not_stored_and_rows_are_forgotten_alone():
    model, batch = llama(), left_padded([3, 0], 8)
    with mx.hf.attach_neurocache(model) as a:
        model(**batch)
        assert a.cache.bank.lengths[:, 0].tolist() == [5, 8]
        a.reset([0])
        assert a.cache.bank.lengths[:, 0].tolist() == [0, 8]
        with pytest.raises(mx.ShapeError, match=r"reset\(\) first"):
            model(tokens(1, 4))
        a.reset()
        model(tokens(1, 4))
        assert len(a.cache.bank) == 4


@torch.no_grad()
def test_generation_writes_token_by_token_and_a_failed_pass_writes_nothing():
    model, prompt = llama(), tokens(2, 9)
    with mx.hf.attach_neurocache(model, layer=1, k=2) as a:
        filled(a.cache)
        out = model.generate(prompt, max_new_tokens=5, do_sample=False)
        assert a.cache.bank.lengths[:, 0].tolist() == [13, 13]
        a.reset()
        x, past = prompt, None
        for _ in range(5):
            step = model(x, past_key_values=past, use_cache=True)
            past, x = step.past_key_values, step.logits[:, -1:].argmax(-1)
            prompt = torch.cat([prompt, x], 1)
        assert torch.equal(prompt, out)
        held = len(a.cache.bank)
        broken = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(prompt)
        broken.remove()
        assert len(a.cache.bank) == held
        model(prompt)
        assert len(a.cache.bank) == held + prompt.numel()


@torch.no_grad()
def test_a_trained_cache_comes_back():
    model, x = llama(), tokens(1, 8)
    with mx.hf.attach_neurocache(model, layer=2) as a:
        cache = filled(a.cache)
        model(x)
        want = model(x).logits
    cache.reset()
    other = mx.torch.Neurocache(32, heads=4, kv_heads=2, layers=2)
    other.load_state_dict(cache.state_dict())
    with mx.hf.attach_neurocache(model, other, layer=2) as a:
        model(x)
        assert torch.equal(model(x).logits, want)


@torch.no_grad()
def test_it_stands_beside_a_memory():
    model, text = llama(), tokens(1, 20)
    memory = mx.Memory.for_model(model)
    with mx.hf.attach(model, memory, top_k=4) as a, mx.hf.attach_neurocache(model) as b:
        a.ingest(text, chunk=8)
        assert len(b.cache.bank) == 20
        assert len(memory[0]) == 40


def test_what_does_not_fit_is_named():
    model = llama()
    cache = mx.torch.Neurocache(32, heads=4)
    refused = [
        (lambda: mx.hf.attach_neurocache(make_other("bert")), "is no decoder"),
        (lambda: mx.hf.attach_neurocache(model, layer=9), "cannot read a memory"),
        (lambda: mx.hf.attach_neurocache(model, layer="top"), "layer='top'"),
        (lambda: mx.hf.attach_neurocache(model, cache, k=3), "k: the cache that was given decides"),
        (lambda: mx.hf.attach_neurocache(model, cache, layer=1), "and 3 from layer 1 on"),
        (lambda: mx.hf.attach_neurocache(model, torch.nn.Linear(2, 2)), "expected a mnemex.torch.Neurocache"),
        (lambda: mx.hf.attach_neurocache(model, heads=4), "heads: the model decides"),
        (lambda: mx.hf.attach_neurocache(torch.nn.Linear(2, 2)), "not a transformers model"),
    ]
    for call, says in refused:
        with pytest.raises(mx.Error, match=says):
            call()
    with mx.hf.attach_neurocache(model) as a:
        with pytest.raises(mx.Error, match="attached already"):
            mx.hf.attach_neurocache(model)
        with pytest.raises(mx.Error, match="cannot be pickled"):
            pickle.dumps(a)
    mx.hf.attach_neurocache(model).detach()
