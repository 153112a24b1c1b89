"""A Neurocache attached to decoders: against a Llama written out with the paper's cache beside its attention."""

from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import hf_plain  # noqa: E402
import mnemex as mx  # noqa: E402
from hf_models import EAGER_ONLY, FAMILIES, gap, generate, make, tokens, unpadded  # noqa: E402
from plain_adapters import PlainNeurocache  # noqa: E402


def attached(model, **how):
    a = mx.hf.attach_neurocache(model, **{"k": 3, "capacity": 20, "compression": 2, **how})
    torch.manual_seed(1)
    for block in a.cache.blocks:
        torch.nn.init.normal_(block.out.weight, std=0.2)
    return a


def pads(n, *left):
    return torch.stack([(torch.arange(n) >= x).long() for x in left])


@torch.no_grad()
def test_segments_read_what_earlier_ones_wrote_from_three_quarters_of_the_stack_up():
    model, text = make("llama", num_hidden_layers=4), tokens(2, 40)
    with attached(model) as a:
        assert a.layers == (3,)
    with attached(model, layer=2) as a:
        assert a.layers == (2, 3)
        rows = [PlainNeurocache(a.cache, 20) for _ in range(2)]
        for segment in text.split(8, 1):
            seen = {}

            def add(layer, hidden, seen=seen):
                if layer < 2:
                    return 0.0
                seen.setdefault("hidden", hidden)
                # What layer 2 found is what layer 3 reads.
                return torch.stack(
                    [row.read(h, layer - 2, by) for row, h, by in zip(rows, hidden, seen["hidden"], strict=True)]
                )

            want = hf_plain.llama(model, segment, hf_plain.alone, add)
            assert gap(model(segment, use_cache=False).logits, want) < 2e-5
            for row, hidden in zip(rows, seen["hidden"], strict=True):
                row.write(hidden)
        assert gap(want, hf_plain.llama(model, segment, hf_plain.alone)) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_starts_as_it_is_and_is_left_as_it_was(name):
    model, inputs = make(name), unpadded(2, 9)
    before = model(**inputs, use_cache=False).logits
    with mx.hf.attach_neurocache(model, layer=1 if name in EAGER_ONLY else "auto", compression=2) as a:
        for _ in range(2):
            assert torch.equal(model(**inputs, use_cache=False).logits, before)
        assert a.cache.bank.lengths.tolist() == [[18], [18]]
        for block in a.cache.blocks:
            torch.nn.init.normal_(block.out.weight)
        assert gap(model(**inputs, use_cache=False).logits, before) > 1e-3
    assert torch.equal(model(**inputs, use_cache=False).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_pads_are_not_stored_and_generate_writes_every_token():
    model = make("llama")
    inputs = {"input_ids": tokens(2, 7), "attention_mask": pads(7, 3, 0)}
    with attached(model) as a:
        generate(model, inputs, max_new_tokens=5)
        assert a.cache.bank.lengths[:, 0].tolist() == [8, 11]
        a.reset([0])
        assert a.cache.bank.lengths[:, 0].tolist() == [0, 11]
        a.reset()
        model(tokens(3, 4))
        assert a.cache.bank.rows == 3


def test_training_reaches_adapters_and_base_with_recomputed_layers_too():
    text = tokens(2, 16)
    grads = []
    for checkpointed in (False, True):
        model = make("llama").train()
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with attached(model, raw=True) as a:
            for segment in text.split(8, 1):
                model(segment, labels=segment, use_cache=False).loss.backward()
            assert a.cache.bank.lengths.tolist() == [[16], [16]]
            assert all(p.grad.any() for p in a.parameters())
            grads.append([p.grad.clone() for p in [*a.parameters(), *model.parameters()]])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_failed_pass_writes_nothing():
    model = make("llama")
    with attached(model) as a:
        model(tokens(2, 6))
        with pytest.raises(Exception, match="broken"), Broken(model):
            model(tokens(2, 6))
        assert a.cache.bank.lengths.tolist() == [[6], [6]]
        model(tokens(2, 6))
        assert a.cache.bank.lengths.tolist() == [[12], [12]]


class Broken:
    """The head of the model raises."""

    def __init__(self, model):
        self.head = model.lm_head

    def __enter__(self):
        def fail(*_):
            raise RuntimeError("broken")

        self.hook = self.head.register_forward_pre_hook(fail)

    def __exit__(self, *_):
        self.hook.remove()


@torch.no_grad()
def test_copies_have_no_cache_and_a_trained_one_attaches_again():
    model, text = make("llama"), tokens(2, 12)
    with attached(model) as a:
        model(text)
        with pytest.raises(mx.Error, match="detach"):
            pickle.dumps(model)
        twin = copy.deepcopy(model)
        want = model(text).logits
    torch.testing.assert_close(twin(text).logits, model(text).logits)
    cache = mx.torch.Neurocache(32, heads=4, kv_heads=2, head_dim=8, k=3, capacity=20, compression=2)
    cache.load_state_dict(a.cache.state_dict())
    other = make("llama")
    with mx.hf.attach_neurocache(other, cache):
        other(text)
        torch.testing.assert_close(other(text).logits, want)


def test_what_does_not_fit_is_refused():
    model = make("llama")
    fits = mx.torch.Neurocache(32, heads=4)
    for make_error, error, message in (
        (lambda: mx.hf.attach_neurocache(model, layer="top"), mx.ArgumentError, "layer='top'"),
        (lambda: mx.hf.attach_neurocache(model, layer=9), mx.Error, "9"),
        (lambda: mx.hf.attach_neurocache(model, heads=2), mx.ArgumentError, "heads: the model decides"),
        (lambda: mx.hf.attach_neurocache(model, fits, k=2), mx.ArgumentError, "k: the cache that was given decides"),
        (lambda: mx.hf.attach_neurocache(model, torch.nn.Linear(1, 1)), mx.DtypeError, "Linear"),
        (lambda: mx.hf.attach_neurocache(model, mx.torch.Neurocache(16, heads=4)), mx.ShapeError, "dim 16"),
        (lambda: mx.hf.attach_neurocache(make("llama", num_hidden_layers=8), fits), mx.ShapeError, "1 layers"),
    ):
        with pytest.raises(error, match=message):
            make_error()
    with attached(model), pytest.raises(mx.Error, match="attached already"):
        attached(model)
    attached(model).detach()
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    with pytest.raises(mx.Unsupported, match="decoder"):
        mx.hf.attach_neurocache(bert)
