"""Conformance points of attached models that no other file holds, each under its number."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, SIZES, attention_outputs, build, gap, generate, lengths, make, memory_of, tokens, unpadded  # noqa: E402

SIZES = {**SIZES, "num_key_value_heads": 2}


IMPORT = """
import torch, transformers
from torch.nn import functional, modules
from transformers import AttentionInterface, AttentionMaskInterface, modeling_utils
def seen():
    return [dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping),
            dict(vars(functional)), dict(vars(modeling_utils.PreTrainedModel)), dict(vars(torch.nn.Module)),
            dict(modules.module._global_forward_hooks), dict(modules.module._global_forward_pre_hooks)]
before = seen()
import mnemex, mnemex.torch, mnemex.hf
mnemex.hf.attach, mnemex.torch.attach
print(seen() == before)"""


def test_point_04_importing_the_adapters_changes_nothing_of_theirs():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("base", ["sdpa", "eager"])
def test_point_05_a_mask_function_that_is_not_taken_is_an_error(base, monkeypatch):
    # Without one, transformers would leave every mask out and say nothing.
    model = make("llama", base)
    with mx.hf.attach(model, memory_of(model)):
        name = model.config._attn_implementation
    monkeypatch.delitem(transformers.AttentionMaskInterface._global_mapping, name)
    monkeypatch.setattr(transformers.AttentionMaskInterface, "register", lambda *_: None)
    with pytest.raises(mx.Unsupported, match=rf"{name}.*causality and padding"):
        mx.hf.attach(model, memory_of(model))
    assert model.config._attn_implementation == base
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@torch.no_grad()
def test_point_05_a_padded_or_future_token_changes_nothing(base):
    model, x = make("llama", base), tokens(2, 10, seed=1)
    mask = torch.ones_like(x)
    mask[1, 7:] = 0
    other = x.clone()
    other[0, 6:] = 2 + (other[0, 6:] + 1) % 50
    other[1, 7:] = 2 + (other[1, 7:] + 1) % 50
    with mx.hf.attach(model, memory_of(model), top_k=4) as a:
        a.ingest(tokens(2, 12, seed=2))
        one, two = (model(ids, attention_mask=mask).logits for ids in (x, other))
    assert torch.equal(one[0, :6], two[0, :6])
    assert torch.equal(one[1, :7], two[1, :7])


@torch.no_grad()
def test_point_07_a_row_reads_its_own_memory_alone():
    model, x, text = make("llama"), tokens(2, 8, seed=3), tokens(2, 12, seed=4)
    other = text.clone()
    other[1] = tokens(1, 12, seed=5)[0]
    got = []
    for read in (text, other):
        with mx.hf.attach(model, memory_of(model), top_k=4) as a:
            a.ingest(read)
            got.append(model(x, position_ids=torch.arange(12, 20)[None]).logits)
    assert torch.equal(got[0][0], got[1][0])
    assert not torch.equal(got[0][1], got[1][1])


@torch.no_grad()
def test_point_08_a_chunk_never_retrieves_itself():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model), top_k=8, write="all", trace=True) as a:
        for step in range(4):
            model(tokens(2, 5, seed=6), position_ids=torch.arange(5 * step, 5 * step + 5)[None], use_cache=False)
            assert len(a.trace) == (2 if step else 0)
            assert all(-1 < trace.ids.max() < 5 * step for trace in a.trace.values())
            a.commit()


@torch.no_grad()
def test_point_15_beams_share_what_they_have_in_common():
    model, inputs = make("llama"), unpadded(1, 200, seed=7)
    sizes = []
    for beams in (1, 8):
        with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
            generate(model, inputs, a.cache(window=8), num_beams=beams, max_new_tokens=4)
            assert lengths(a.memory[0]) == [192] * beams
            sizes.append(a.memory.nbytes)
    assert sizes[1] < 4 * sizes[0]  # the last blocks are each beam's own


SCORED = {
    "granite, a multiplier": ("granite", {}, {"attention_multiplier": 0.9}),
    "gemma2, a scale": ("gemma2", {"attn_logit_softcapping": None}, {"query_pre_attn_scalar": 3}),
    "gemma2, a softcap": ("gemma2", {"attn_logit_softcapping": None}, {"attn_logit_softcapping": 0.5}),
}


@pytest.mark.parametrize("case", SCORED)
@torch.no_grad()
def test_point_12_a_models_own_scale_and_softcap_hold_for_entries(case):
    name, usual, own = SCORED[case]

    def made(**changes):
        if name == "granite":
            return build(transformers.GraniteConfig(**SIZES, **changes), 2.0)
        return make(name, **{**usual, **changes})

    x = tokens(2, 30, seed=8)
    plain = made()
    model = made(**own)
    want = [out[:, 20:] for out in attention_outputs(model, lambda: model(x))]
    other = [out[:, 20:] for out in attention_outputs(plain, lambda: plain(x))]
    assert gap(want[0], other[0]) > 1e-2
    for top_k in (EVERY, 20):
        with mx.hf.attach(model, memory_of(model), top_k=top_k) as a:
            a.ingest(x[:, :20], chunk=9)
            positions = torch.arange(20, 30)[None]
            got = attention_outputs(model, lambda p=positions: model(x[:, 20:], position_ids=p))
        for mine, theirs in zip(got, want, strict=True):
            assert gap(mine, theirs) <= 1e-5


@torch.no_grad()
def test_point_12_learned_sinks_count_once_beside_entries():
    model, x = make("gpt_oss"), tokens(2, 30, seed=9)
    want = [out[:, 20:] for out in attention_outputs(model, lambda: model(x))]
    sinks = [p for n, p in model.named_parameters() if n.endswith("sinks")]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :20])
        positions = torch.arange(20, 30)[None]
        got = attention_outputs(model, lambda: model(x[:, 20:], position_ids=positions))
        for sink in sinks:
            sink.fill_(3.0)
        moved = attention_outputs(model, lambda: model(x[:, 20:], position_ids=positions))
    assert len(sinks) == len(got) == 2
    for mine, theirs in zip(got, want, strict=True):
        assert gap(mine, theirs) <= 1e-5
    assert gap(moved[0], want[0]) > 1e-2


LINEAR = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SIZES, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "lfm2": lambda: transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_point_16_linear_layers_keep_their_state_and_are_never_written(name):
    model, x = build(LINEAR[name](), 2.0), tokens(1, 30, seed=6)
    assert memory_of(model).layers == (1,)
    with pytest.raises(mx.Unsupported, match=r"layer 0 of \w+ForCausalLM .* LinearAttentionLayer; these can: 1"):
        memory_of(model, layers=[0])
    (want,) = attention_outputs(model, lambda: model(x))
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.recurrence.check("nothing")  # runs the model itself, once
        got = attention_outputs(model, lambda: a.ingest(x, chunk=7))
        assert lengths(a.memory[1]) == [30]
    assert gap(torch.cat(got, 1), want) <= 1e-5
    inputs = {"input_ids": x, "attention_mask": torch.ones_like(x)}
    plain = generate(model, inputs)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        out = generate(model, inputs, a.cache(window=4, sinks=2))
        assert lengths(a.memory[1]) == [41 - 3 - 2]
    assert torch.equal(out.sequences, plain.sequences)
    assert max(gap(one, other) for one, other in zip(out.logits, plain.logits, strict=True)) <= 1e-5


@torch.no_grad()
def test_point_24_a_memory_that_was_saved_knows_its_model_again(tmp_path):
    model, x = make("llama"), tokens(1, 30, seed=10)
    with mx.hf.attach(model, memory_of(model), top_k=4) as a:
        a.ingest(x[:, :20])
        want = model(x[:, 20:], position_ids=torch.arange(20, 30)[None]).logits
    a.memory.save(tmp_path / "memory")
    memory = mx.open(tmp_path / "memory")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mx.hf.attach(make("llama"), memory, top_k=4) as a:
            assert torch.equal(a.stack.owners[0](x[:, 20:], position_ids=torch.arange(20, 30)[None]).logits, want)
        mx.hf.attach(make("llama").to(torch.bfloat16), memory).detach()  # one model in two dtypes is one model
    theta = {"rope_type": "default", "rope_theta": 500.0}
    for other in (make("qwen3"), make("smollm3"), make("llama", rope_parameters=theta), make("gpt2")):
        with pytest.raises(mx.Error, match="another architecture"):
            mx.hf.attach(other, memory)
    with pytest.warns(UserWarning, match="other weights"):
        mx.hf.attach(make("llama", seed=1), memory).detach()


@torch.no_grad()
def test_point_24_a_low_rank_adapter_makes_another_writer():
    peft = pytest.importorskip("peft", reason="PEFT is not installed: it is in the group 'adapters'")
    model = make("llama")
    memory = memory_of(model)
    with mx.hf.attach(model, memory) as a:
        a.ingest(tokens(1, 8))
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["k_proj"]), model)
    with pytest.warns(UserWarning, match="other weights"):
        mx.hf.attach(adapted, memory).detach()
