"""An attached memory equals attention over the concatenation, in every family, and leaves no trace."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import (  # noqa: E402
    BASES,
    EVERY,
    attention_outputs,
    gap,
    left_padded,
    lengths,
    make,
    memory_of,
    tokens,
)
from mnemex.hf.function import attached_modules  # noqa: E402


@pytest.mark.parametrize(("name", "base"), BASES)
@torch.no_grad()
def test_point_01_each_attention_output_equals_that_over_the_concatenation(name, base):
    model, x = make(name, base), tokens(2, 40, seed=1)
    want = [out[:, 28:] for out in attention_outputs(model, lambda: model(x))]
    positions = torch.arange(28, 40)[None]
    for top_k in (EVERY, 28, 1000):
        with mx.hf.attach(model, memory_of(model), top_k=top_k) as a:
            a.ingest(x[:, :28], chunk=11)
            got = attention_outputs(model, lambda: model(x[:, 28:], position_ids=positions))
        assert len(got) == len(want) == 2
        for one, other in zip(got, want, strict=True):
            assert gap(one, other) <= 1e-5


@pytest.mark.parametrize(("name", "base"), BASES)
@torch.no_grad()
def test_point_06_padded_rows_equal_the_rows_alone(name, base):
    model = make(name, base)
    batch = left_padded([0, 9, 4], 24, seed=2)
    tail = tokens(3, 8, seed=3)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(batch["input_ids"], batch["attention_mask"], chunk=10)
        starts = batch["attention_mask"].sum(1, keepdim=True)
        got = model(tail, position_ids=starts + torch.arange(8)).logits
    assert lengths(a.memory[0]) == [24, 15, 20]
    for row, pad in enumerate([0, 9, 4]):
        alone = torch.cat([batch["input_ids"][row : row + 1, pad:], tail[row : row + 1]], 1)
        assert gap(got[row : row + 1], model(alone).logits[:, -8:]) <= 1e-5


@pytest.mark.parametrize(("name", "base"), [("llama", "sdpa"), ("llama", "eager"), ("gpt_oss", "eager")])
@torch.no_grad()
def test_point_06_right_padding_is_neither_read_nor_written(name, base):
    model, x = make(name, base), tokens(2, 12, seed=4)
    mask = torch.ones_like(x)
    mask[1, 7:] = 0
    with mx.hf.attach(model, memory_of(model), top_k=EVERY, write="all") as a:
        model(x.masked_fill(mask == 0, 0), attention_mask=mask)
        a.commit()
        assert lengths(a.memory[0]) == [12, 7]
        got = model(x[1:, :5].repeat(2, 1), position_ids=torch.arange(7, 12)[None]).logits[1:]
    alone = torch.cat([x[1:, :7], x[1:, :5]], 1)
    assert gap(got, model(alone).logits[:, 7:]) <= 1e-5


@torch.no_grad()
def test_a_four_axis_mask_tells_pads_too():
    model, x = make("llama"), tokens(2, 6, seed=5)
    valid = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None] & valid[:, None, None]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY, write="all") as a:
        model(x, attention_mask=mask)
        a.commit()
    assert lengths(a.memory[0]) == [6, 4]


@torch.no_grad()
def test_point_16_sliding_layers_are_left_alone_and_keep_their_window_while_ingesting():
    layers = ["sliding_attention", "full_attention"]
    for name in ("gemma2", "gemma3", "gpt_oss"):
        model, x = make(name, layer_types=layers), tokens(1, 30, seed=6)
        memory = memory_of(model)
        assert list(memory.layers) == [1]
        modules = [m for m in model.modules() if hasattr(m, "k_proj")]
        seen = []
        hook = modules[1].register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out[0]))
        model(x)
        with mx.hf.attach(model, memory, top_k=EVERY) as a:
            a.ingest(x, chunk=7)
        hook.remove()
        assert gap(torch.cat(seen[1:], 1), seen[0]) <= 1e-5


@torch.no_grad()
def test_a_subset_of_layers_ingests_exactly():
    model, x = make("llama"), tokens(2, 30, seed=7)
    for chosen in ([0], [1]):
        want = attention_outputs(model, lambda: model(x))
        with mx.hf.attach(model, memory_of(model, layers=chosen), top_k=EVERY) as a:
            got = attention_outputs(model, lambda a=a: a.ingest(x, chunk=8))
        for layer in (0, 1):
            assert gap(torch.cat(got[layer::2], 1), want[layer]) <= 1e-5


@torch.no_grad()
def test_layers_of_the_attachment_may_be_fewer_than_those_of_the_memory():
    model, x = make("llama"), tokens(1, 12, seed=8)
    memory = memory_of(model)
    with mx.hf.attach(model, memory, top_k=EVERY, layers=[1], write="all") as a:
        model(x)
        a.commit()
        assert a.stats().layers == (1,)
    assert len(memory[0]) == 0
    assert len(memory[1]) > 0


@pytest.mark.parametrize(("name", "base"), BASES)
@torch.no_grad()
def test_point_04_detaching_leaves_no_trace(name, base):
    model, x = make(name, base), tokens(2, 10, seed=9)
    before, named = model(x).logits, model.config._attn_implementation
    config = model.config.to_dict()
    a = mx.hf.attach(model, memory_of(model), top_k=8, write="all")
    assert model.config._attn_implementation != named
    assert model.config.to_dict() == config
    model(x)
    a.commit()
    assert not torch.equal(model(x).logits, before)
    a.detach()
    a.detach()
    assert torch.equal(model(x).logits, before)
    assert model.config._attn_implementation == named
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(m in attached_modules for m in model.modules())


@pytest.mark.parametrize(("name", "base"), BASES)
@torch.no_grad()
def test_point_03_an_empty_memory_gives_the_same_bits(name, base):
    model, x = make(name, base), left_padded([0, 3], 10, seed=10)
    before = model(**x).logits
    assert torch.isfinite(before[x["attention_mask"] == 1]).all()
    with mx.hf.attach(model, memory_of(model), top_k=8):
        assert torch.equal(model(**x).logits, before)


@pytest.mark.parametrize(("name", "base"), BASES)
@torch.no_grad()
def test_point_04_models_that_share_one_config_do_not_touch_each_other(name, base):
    one, x = make(name, base), tokens(1, 12, seed=11)
    two = type(one)(one.config).eval()
    before = two(x).logits
    for write in ("off", "all"):
        a = mx.hf.attach(one, memory_of(one), top_k=4, write=write)
        one(x)
        a.commit()
        assert torch.equal(two(x).logits, before)
        b = mx.hf.attach(two, memory_of(two), top_k=4)
        a.detach()
        assert torch.equal(two(x).logits, before)
        b.ingest(x)
        assert not torch.equal(two(x).logits, before)
        b.detach()
        assert torch.equal(two(x).logits, before)
        assert one.config._attn_implementation == base


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@torch.no_grad()
def test_a_padded_batch_of_a_model_that_shares_the_config_keeps_its_mask(base):
    one = make("llama", base)
    two = transformers.LlamaForCausalLM(one.config).eval()
    batch = left_padded([0, 5], 12, seed=12)
    before = two(**batch).logits
    with mx.hf.attach(one, memory_of(one)):
        assert torch.equal(two(**batch).logits, before)


@torch.no_grad()
def test_a_copied_model_does_not_share_the_memory():
    model, x = make("llama"), tokens(1, 12, seed=13)
    before = model(x).logits
    with mx.hf.attach(model, memory_of(model), top_k=4) as a:
        a.ingest(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x).logits, before)
        assert not torch.equal(model(x).logits, before)
    assert torch.equal(twin(x).logits, before)


def test_a_model_can_be_collected_after_detaching():
    from weakref import ref

    model = make("llama")
    mx.hf.attach(model, memory_of(model)).detach()
    gone = ref(model)
    del model
    gc.collect()
    assert gone() is None


@torch.no_grad()
def test_a_forward_pass_that_fails_stages_nothing():
    model, x = make("llama"), tokens(1, 8, seed=14)
    with mx.hf.attach(model, memory_of(model), top_k=4, write="all") as a:
        hook = model.lm_head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("mine")))
        with pytest.raises(RuntimeError, match="mine"):
            model(x)
        hook.remove()
        a.commit()
        assert len(a.memory) == 0
        model(x)
        a.commit()
        assert lengths(a.memory[0]) == [8]


@torch.no_grad()
def test_the_inner_model_is_attached_as_well():
    model, x = make("llama"), tokens(1, 30, seed=15)
    want = model.model(x).last_hidden_state
    for which in (model, model.model):
        with mx.hf.attach(which, memory_of(which), top_k=EVERY) as a:
            a.ingest(x[:, :20])
            got = model.model(x[:, 20:], position_ids=torch.arange(20, 30)[None]).last_hidden_state
        assert gap(got, want[:, 20:]) <= 1e-5


@torch.no_grad()
def test_positional_arguments_and_embeddings_arrive():
    model, x = make("gpt2"), tokens(2, 12, seed=16)
    with mx.hf.attach(model, memory_of(model), top_k=4, write="all") as a:
        model(x, None, torch.tensor([[0] * 3 + [1] * 9, [1] * 12]))
        a.commit()
        assert lengths(a.memory[0]) == [9, 12]
        model(inputs_embeds=model.get_input_embeddings()(x))
        a.commit()
        assert lengths(a.memory[0]) == [21, 24]


@torch.no_grad()
def test_a_default_cache_reads_the_memory_beside_itself():
    model, x = make("llama"), tokens(1, 30, seed=17)
    want = model(x).logits[:, 24:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :16])
        first = model(x[:, 16:24], position_ids=torch.arange(16, 24)[None], use_cache=True)
        got = model(x[:, 24:], position_ids=torch.arange(24, 30)[None], past_key_values=first.past_key_values).logits
    assert gap(got, want) <= 1e-5


@torch.no_grad()
def test_a_static_cache_is_read_beside_but_not_written_from():
    model, x = make("llama"), tokens(1, 20, seed=18)
    want = model(x).logits[:, 12:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :12])
        static = transformers.StaticCache(config=model.config, max_cache_len=32)
        got = model(x[:, 12:], position_ids=torch.arange(12, 20)[None], past_key_values=static).logits
        assert gap(got, want) <= 1e-5
    with mx.hf.attach(model, memory_of(model), write="all"), pytest.raises(mx.Error, match="StaticCache"):
        model(x, past_key_values=transformers.StaticCache(config=model.config, max_cache_len=32))


@torch.no_grad()
def test_positions_past_the_trained_length_warn_once_and_name_the_way_out():
    model = make("llama", max_position_embeddings=16)
    with mx.hf.attach(model, memory_of(model), top_k=4) as a:
        a.ingest(tokens(1, 16))
        with pytest.warns(UserWarning, match="keys='plain'"):
            a.ingest(tokens(1, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            a.ingest(tokens(1, 4))


@torch.no_grad()
def test_rows_follow_the_first_batch_unless_they_were_given():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model), write="all") as a:
        model(tokens(3, 5))
        a.commit()
        assert a.memory.rows == 3
        with pytest.raises(mx.Error, match="rows"):
            model(tokens(2, 5))
    with mx.hf.attach(model, memory_of(model, rows=2), write="all"), pytest.raises(mx.Error, match="rows"):
        model(tokens(3, 5))


@torch.no_grad()
def test_one_document_serves_a_batch():
    model, x = make("llama"), tokens(1, 20, seed=25)
    tails = tokens(3, 6, seed=26)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x)
        got = model(tails, position_ids=torch.arange(20, 26)[None]).logits
    want = model(torch.cat([x.expand(3, -1), tails], 1)).logits[:, 20:]
    assert gap(got, want) <= 1e-5


@torch.no_grad()
def test_point_07_texts_packed_into_one_row_read_as_if_alone_and_are_not_written():
    model, x = make("llama"), tokens(1, 20, seed=30)
    one, two = tokens(1, 5, seed=31), tokens(1, 7, seed=32)
    starts = [torch.arange(20, 20 + t.shape[1])[None] for t in (one, two)]
    packed = {"input_ids": torch.cat([one, two], 1), "position_ids": torch.cat(starts, 1), "use_cache": False}
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x)
        got = model(**packed).logits.split([5, 7], 1)
        for text, positions, out in zip((one, two), starts, got, strict=True):
            assert gap(out, model(text, position_ids=positions).logits) <= 1e-5
        packed["input_ids"][:, 5:] = tokens(1, 7, seed=33)
        other = model(**packed).logits.split([5, 7], 1)
        assert torch.equal(other[0], got[0])
        assert not torch.equal(other[1], got[1])
        with pytest.raises(mx.Error, match="cu_seq_lens"):
            model(**packed, cu_seq_lens_q=torch.tensor([0, 5, 12]))
    for write, cache in (("all", None), ("evicted", 4)):
        with mx.hf.attach(model, memory_of(model), write=write) as a, pytest.raises(mx.Error, match="several texts"):
            model(**{**packed, "use_cache": True}, past_key_values=cache and a.cache(cache))


@torch.no_grad()
def test_reading_again_continues_the_positions():
    model, x = make("gpt2"), tokens(1, 30, seed=27)
    want = model(x).logits[:, 24:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        assert a.next_position == 0
        a.ingest(x[:, :10])
        a.ingest(x[:, 10:24], chunk=5)
        assert a.next_position == 24
        got = model(x[:, 24:], position_ids=torch.arange(24, 30)[None]).logits
        assert gap(got, want) <= 1e-5
    with mx.hf.attach(model, a.memory, top_k=EVERY) as again:
        assert again.next_position == 24
        again.ingest(x[:, 24:])
        assert again.next_position == 30
        a.memory.reset()
        assert again.next_position == 0
        again.ingest(x[:, :7])
        assert again.next_position == 7


@torch.no_grad()
def test_a_memory_of_other_weights_warns_and_one_of_another_model_is_refused():
    one, x = make("llama", seed=1), tokens(1, 8)
    memory = memory_of(one)
    with mx.hf.attach(one, memory) as a:
        a.ingest(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.hf.attach(copy.deepcopy(one).to(torch.bfloat16), memory).detach()
    with pytest.warns(UserWarning, match="other weights"):
        mx.hf.attach(make("llama", seed=2), memory).detach()
    with pytest.raises(mx.Error, match="another architecture"):
        mx.hf.attach(make("llama", num_key_value_heads=4), memory)
    with pytest.raises(mx.Error, match="another architecture"):
        mx.hf.attach(make("qwen3"), memory)


@torch.no_grad()
def test_a_trace_tells_what_the_last_forward_pass_retrieved():
    model, x = make("llama"), tokens(2, 30, seed=29)
    with mx.hf.attach(model, memory_of(model), top_k=3, trace=True) as a:
        model(x[:, :4])
        assert a.trace == {}
        a.ingest(x[:, :20])
        model(x[:, 20:], position_ids=torch.arange(20, 30)[None])
        assert sorted(a.trace) == [0, 1]
        for trace in a.trace.values():
            assert trace.ids.shape == trace.mass.shape == (2, 4, 10, 3)
            assert ((trace.ids >= 0) & (trace.ids < 20)).all()
            assert abs(trace.mass.sum(-1) - 1).max() < 1e-5
            assert trace.share.shape == (2, 4, 10)
            assert ((trace.share > 0) & (trace.share < 1)).all()
    with mx.hf.attach(model, a.memory, top_k=3) as a:
        model(x[:, :4])
        assert a.trace is None
