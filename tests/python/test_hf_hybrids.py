"""Models of which some layers attend and others keep a state: exact in the layers that attend, or refused by name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, SIZES, build, gap, generate, memory_of, tokens, unpadded  # noqa: E402

SIZES = {**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 2}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
CONFIGS = {
    "Qwen3Next": {
        **LINEAR, **EXPERTS, "head_dim": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "Bamba": {**MAMBA, **HEADS, "attn_layer_indices": [1, 3]},
    "Jamba": {
        **MAMBA, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "FalconH1": {**MAMBA, **HEADS, "mamba_d_ssm": 64, "head_dim": 8},
    "MiniMax": {
        "head_dim": 8, "block_size": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}  # fmt: skip


def make(name):
    return build(getattr(transformers, f"{name}Config")(**SIZES, **CONFIGS[name]), 3.0)


@pytest.mark.parametrize("name", ["Qwen3Next", "Lfm2", "Bamba"])
@torch.no_grad()
def test_layers_that_attend_are_exact_and_the_others_keep_their_state(name):
    model, x = make(name), tokens(1, 24)
    want, positions = model(x, use_cache=False).logits, torch.arange(24)[None]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        assert list(a.modules) == [1, 3]
        cache = a.cache(window=4, sinks=1)
        for span in (slice(0, 12), slice(12, 18), slice(18, 24)):
            got = model(x[:, span], position_ids=positions[:, span], past_key_values=cache).logits
            assert gap(got, want[:, span]) <= 1e-5
    in_chunks, whole = memory_of(model), memory_of(model)
    for memory, chunk in ((in_chunks, 5), (whole, 24)):
        with mx.hf.attach(model, memory) as a:
            a.ingest(x, chunk=chunk)
    ids = torch.arange(24)[None]
    assert gap(*(torch.from_numpy(memory[3].gather(ids)[0]) for memory in (in_chunks, whole))) <= 1e-5


@torch.no_grad()
def test_a_model_that_forgets_its_state_between_chunks_reads_in_one_or_is_refused():
    model, inputs = make("Jamba"), unpadded(1, 9)
    want = generate(model, inputs).logits
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=4)
        for one, other in zip(generate(model, inputs, cache).logits, want, strict=True):
            assert gap(one, other) <= 1e-5
        n = len(a.memory)
        with pytest.raises(mx.Unsupported, match=r"JambaForCausalLM forgets .* give the next prompt a new cache"):
            model(tokens(1, 3), past_key_values=cache)
        with pytest.raises(mx.Unsupported, match=r"JambaForCausalLM forgets .* ingest\(ids, chunk=9\)"):
            a.ingest(inputs["input_ids"], chunk=5)
        assert len(a.memory) == n
        a.ingest(inputs["input_ids"], chunk=9)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("MiniMax", "MiniMaxForCausalLM keeps the past of its layers in a cache of its own, MiniMaxCache"),
        ("FalconH1", "no layer of FalconH1ForCausalLM .* LinearAttentionAndFullAttentionLayer"),
    ],
)
def test_models_whose_states_cannot_be_kept_are_refused(name, match):
    with pytest.raises(mx.Unsupported, match=match):
        memory_of(make(name))
