"""Encoders and encoder-decoders: each attention output equals that over memory and local keys in one piece."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import eager_mask  # noqa: E402

import mnemex as mx  # noqa: E402
from hf_models import (  # noqa: E402
    ENCODER_DECODERS,
    ENCODERS,
    EVERY,
    gap,
    generate,
    inputs_of,
    lengths,
    make_other,
    memory_of,
    tokens,
)
from mnemex.hf.function import base_function  # noqa: E402
from mnemex.hf.stack import find_stack  # noqa: E402

N_ENTRIES = 13
OTHERS = [*ENCODERS, *ENCODER_DECODERS]
IMAGE_PADS = ("vit", True)
"""What there is not."""


def filled(model, rows=2):
    """Make a memory of random entries, and the entries by attention module."""
    memory = memory_of(model, rows=rows)
    generator = torch.Generator().manual_seed(40)
    entries = {}
    for layer, module in find_stack(model).modules.items():
        bank = memory[layer]
        keys = torch.randn(rows, bank.heads, N_ENTRIES, bank.key_dim, generator=generator)
        values = torch.randn(rows, bank.heads, N_ENTRIES, bank.value_dim, generator=generator)
        bank.write(keys, values)
        entries[module] = (keys, values)
    return memory, entries


@contextlib.contextmanager
def concatenated(model, entries):
    """Run the model's own eager attention over the entries and its local keys."""

    def attention(module, query, key, value, mask, position_bias=None, **kwargs):
        if module in entries:
            keys, values = entries[module]
            n_local = key.shape[2]
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            wide = (N_ENTRIES, 0)
            if mask is not None:
                mask = torch.nn.functional.pad(mask[..., :n_local], wide)
            if position_bias is not None:
                position_bias = torch.nn.functional.pad(position_bias, wide)
        if position_bias is not None:
            kwargs["position_bias"] = position_bias
        return base_function(type(module), "eager")(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("concatenated", attention)
    AttentionMaskInterface.register("concatenated", eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("concatenated")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def implementations(model):
    return [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


def outputs_of(modules, run):
    seen = []
    hooks = [m.register_forward_hook(lambda _m, _a, out: seen.append(out[0])) for m in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "padded"), [(name, padded) for name in OTHERS for padded in (False, True) if (name, padded) != IMAGE_PADS]
)
@torch.no_grad()
def test_point_01_each_attention_output_equals_that_over_the_concatenation(name, base, padded):
    model, inputs = make_other(name, base), inputs_of(name, seed=1)
    if padded:
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[1, 6:] = 0
        inputs["decoder_attention_mask" if name in ENCODER_DECODERS else "attention_mask"] = mask
    memory, entries = filled(model)
    with concatenated(model, entries):
        want = outputs_of(entries, lambda: model(**inputs))
    alone = outputs_of(entries, lambda: model(**inputs))
    for top_k in (EVERY, N_ENTRIES):
        with mx.hf.attach(model, memory, top_k=top_k):
            got = outputs_of(entries, lambda: model(**inputs))
        assert len(got) == len(want) == 2
        for mine, theirs, without in zip(got, want, alone, strict=True):
            assert gap(mine, theirs) <= 1e-5
            assert gap(without, theirs) > 1e-2


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_point_04_attach_and_detach_leave_the_same_bits_and_other_models_alone(name, base):
    model, inputs = make_other(name, base), inputs_of(name, seed=2)
    other = type(model)(model.config).eval()
    before, beside = model(**inputs)[0], other(**inputs)[0]
    named = implementations(model)
    with mx.hf.attach(model, memory_of(model), top_k=8, write="all") as a:
        assert torch.equal(model(**inputs)[0], before)
        a.commit()
        assert not torch.equal(model(**inputs)[0], before)
        assert torch.equal(other(**inputs)[0], beside)
    assert torch.equal(model(**inputs)[0], before)
    assert implementations(model) == named
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_point_16_what_a_forward_pass_writes(name):
    model, per_row = make_other(name), 5 if name == "vit" else 9
    with mx.hf.attach(model, memory_of(model), write="all") as a:
        for _ in range(2):
            model(**inputs_of(name))
            a.commit()
        assert [lengths(a.memory[layer]) for layer in a.memory.layers] == [[2 * per_row] * 2] * len(a.memory.layers)


def test_layers_that_see_a_window_are_left_alone():
    model = make_other("modernbert")
    assert memory_of(model).layers == (0, 2)
    with pytest.raises(mx.Error, match=r"layer 1 of ModernBertModel .* 'sliding_attention'"):
        memory_of(model, layers=[1])


@torch.no_grad()
def test_an_encoder_ingests_passages_of_a_chunk_each():
    model, x = make_other("bert"), tokens(1, 18, seed=3)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x, chunk=9)
        got = model(x[:, :4])[0]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY, write="all") as b:
        for passage in x.split(9, 1):
            model(passage)
            b.commit()
        assert torch.equal(model(x[:, :4])[0], got)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_gradients_reach_a_learned_position_bias_and_the_local_keys(name):
    model, inputs = make_other(name).train(), inputs_of(name, seed=4)
    memory, entries = filled(model)
    with concatenated(model, entries):
        model(**inputs).logits.square().sum().backward()
    decoder = model.get_decoder()
    want = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    model.zero_grad()
    with mx.hf.attach(model, memory, top_k=EVERY):
        model(**inputs).logits.square().sum().backward()
    large = [n for n, gradient in want.items() if gradient.abs().max() > 1e-6]
    assert len(large) > len(want) / 2
    for n in large:
        assert gap(decoder.get_parameter(n).grad, want[n]) <= 1e-3, n


@pytest.mark.parametrize("window", [1, 3, 64])
@torch.no_grad()
def test_bart_generates_through_the_cache_as_with_its_own(window):
    model, inputs = make_other("bart"), {"input_ids": tokens(2, 7, seed=6)}
    want = generate(model, inputs, num_beams=1)
    beams = generate(model, inputs, num_beams=3)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        got = generate(model, inputs, a.cache(window=window, sinks=1), num_beams=1)
    assert torch.equal(got.sequences, want.sequences)
    for mine, theirs in zip(got.logits, want.logits, strict=True):
        assert gap(mine, theirs) <= 1e-5
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        assert torch.equal(generate(model, inputs, a.cache(window=window), num_beams=3).sequences, beams.sequences)


@torch.no_grad()
def test_what_encoders_and_encoder_decoders_refuse():
    bert, bart, vit = map(make_other, ("bert", "bart", "vit"))
    with mx.hf.attach(bert, memory_of(bert)) as a, pytest.raises(mx.Error, match="BertModel is an encoder"):
        a.cache()
    with mx.hf.attach(vit, memory_of(vit)) as a, pytest.raises(mx.Error, match="ViTModel does not read token ids"):
        a.ingest(tokens(1, 4))
    with mx.hf.attach(bart, memory_of(bart)) as a, pytest.raises(mx.Error, match="BartForConditionalGeneration"):
        a.ingest(tokens(1, 4))
    for name in {"t5"} & set(ENCODER_DECODERS):
        t5 = make_other(name)
        with mx.hf.attach(t5, memory_of(t5)) as a, pytest.raises(mx.Error, match="T5Attention biases keys"):
            generate(t5, {"input_ids": tokens(1, 5)}, a.cache())
