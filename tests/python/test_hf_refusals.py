"""What cannot be exact is refused, with the class name and the way out."""

from __future__ import annotations

import pickle
import types

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, config_of, gap, generate, lengths, make, make_other, memory_of, tokens, unpadded  # noqa: E402

SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 2, "moe_intermediate_size": 16,
}  # fmt: skip


def build(config, base="sdpa"):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=base).eval()


def bloom():
    return build(transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=2), "eager")


def two_towers():
    text = {**SMALL, "projection_dim": 16, "max_position_embeddings": 16}
    image = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**image, "image_size": 8, "patch_size": 4})
    )


def mistral():
    return build(transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8))


def sparse():
    return build(
        transformers.DeepseekV32Config(**SMALL, **LATENT, index_topk=4, index_n_heads=2, index_head_dim=8), "eager"
    )


def shared():
    sizes = {**SMALL, "num_hidden_layers": 4}
    return build(
        transformers.Gemma4TextConfig(
            **sizes, num_key_value_heads=2, head_dim=8, sliding_window=6, num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )  # fmt: skip


def flex():
    model = make("llama")
    model.set_attn_implementation("flex_attention")
    return model


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (bloom, "BloomForCausalLM .* AttentionInterface"),
        (two_towers, "CLIPModel has several attention layers of one number, or without"),
        (mistral, "no layer of MistralForCausalLM .* sliding window of 8"),
        (sparse, "DeepseekV32ForCausalLM .*sparse"),
        (shared, "Gemma4ForCausalLM shares the keys and values"),
        (flex, "LlamaForCausalLM runs attention 'flex_attention'"),
        (lambda: torch.nn.Linear(3, 3), "Linear is not a transformers model"),
    ],
)
def test_point_16_models_that_cannot_be_attached(model, match):
    model, other = model(), make("llama")
    with pytest.raises(mx.Error, match=match):
        mx.Memory.for_model(model)
    with pytest.raises(mx.Error, match=match):
        mx.hf.attach(model, memory_of(other))


def test_a_layer_that_attends_twice_gets_no_memory():
    model = build(transformers.DiffLlamaConfig(**SMALL, num_key_value_heads=2))
    with pytest.raises(mx.Error, match="DiffLlamaAttention attends more than once"):
        mx.Memory.for_model(model)


@torch.no_grad()
def test_sparse_attention_is_refused_at_the_call_as_well():
    llama = make("llama")
    with mx.hf.attach(llama, memory_of(llama)), pytest.raises(mx.Error, match="selects keys itself"):
        llama(tokens(1, 4), indices=torch.zeros(1))
    with mx.hf.attach(llama, memory_of(llama)), pytest.raises(mx.Error, match="selects keys itself"):
        llama(tokens(1, 4), block_indices=torch.zeros(1))


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@torch.no_grad()
def test_a_bias_for_each_key_in_the_mask_is_refused(base):
    model, x = build(transformers.DogeConfig(**SMALL, num_key_value_heads=2), base), tokens(1, 6)
    with mx.hf.attach(model, memory_of(model)) as a, pytest.raises(mx.Error, match="DogeAttention adds a bias"):
        a.ingest(x, chunk=3)


@torch.no_grad()
def test_a_layer_that_attends_twice_is_refused_at_the_call_as_well():
    model, x = make("llama"), tokens(1, 4)
    attention = model.model.layers[0].self_attn
    with mx.hf.attach(model, memory_of(model), write="all"):
        forward = attention.forward
        attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs), forward(*args, **kwargs))[1]
        with pytest.raises(mx.Error, match="LlamaAttention attends more than once"):
            model(x)


@torch.no_grad()
def test_point_13_latent_attention_is_exact_without_a_cache_and_refuses_one():
    model, x = build(transformers.DeepseekV3Config(**SMALL, **LATENT)), tokens(1, 30)
    want = model(x).logits[:, 20:]
    memory = memory_of(model)
    assert (memory[0].key_dim, memory[0].value_dim) == (12, 6)
    with mx.hf.attach(model, memory, top_k=EVERY) as a:
        a.ingest(x[:, :20], chunk=7)
        got = model(x[:, 20:], position_ids=torch.arange(20, 30)[None]).logits
        with pytest.raises(mx.Error, match="DeepseekV3ForCausalLM caches latents"):
            a.cache()
    assert gap(got, want) <= 1e-5


@torch.no_grad()
def test_a_model_that_changes_keys_after_its_cache_is_found_out(monkeypatch):
    model, x = make("llama"), tokens(1, 6)
    with mx.hf.attach(model, memory_of(model)) as a:
        cache = a.cache(window=2)
        update = cache.update
        monkeypatch.setattr(cache, "update", lambda *args: tuple(t.clone() for t in update(*args)))
        with pytest.raises(mx.Error, match="LlamaAttention changes keys or values"):
            model(x, past_key_values=cache)


@torch.no_grad()
def test_a_layer_called_by_itself_is_refused():
    model, x = make("llama"), torch.randn(1, 4, 32)
    with mx.hf.attach(model, memory_of(model)), pytest.raises(mx.Error, match="LlamaAttention of LlamaForCausalLM"):
        model.model.layers[0].self_attn(x, position_embeddings=model.model.rotary_emb(x, torch.arange(4)[None]))


@torch.no_grad()
def test_a_class_without_a_source_file_is_attached_all_the_same():
    source = types.ModuleType("notebook_without_a_file")
    source.Base = transformers.LlamaForCausalLM
    exec("class Mine(Base):\n    pass\n", vars(source))
    torch.manual_seed(0)
    model, x = source.Mine(config_of("llama")).eval(), tokens(1, 30)
    want = model(x).logits[:, 20:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :20])
        assert gap(model(x[:, 20:], position_ids=torch.arange(20, 30)[None]).logits, want) <= 1e-5


def test_continuous_batching_is_refused_by_transformers():
    model = make("llama")
    with (
        mx.hf.attach(model, memory_of(model)),
        pytest.raises(ValueError, match=r"mnemex.* is not supported"),
    ):
        model.generate_batch([[3, 4, 5]], progress_bar=False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"merge": "gate"}, "merge"),
        ({"positions": "none"}, "positions"),
        ({"positions": 512}, "positions"),
        ({"write": "some"}, "write"),
        ({"top_k": None, "trace": True}, "trace"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 2**70}, "top_k"),
        ({"trace": 1}, "trace"),
        ({"positions": [1]}, "positions"),
        ({"positions": 2**70}, "positions"),
        ({"layers": "all"}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": 1}, "layers=1: expected 'auto' or a list"),
        ({"layers": [True]}, "layers"),
        ({"layers": [0.5]}, "layers"),
        ({"merge": mx.torch.Gate(2)}, r"merge has 2 heads, layer 0 of LlamaForCausalLM has 4.*Gate\(4\)"),
        ({"layers": [7]}, "layer 7 of LlamaForCausalLM"),
    ],
)
def test_wrong_arguments_are_named(options, match):
    model = make("llama")
    with pytest.raises(mx.Error, match=match):
        mx.hf.attach(model, memory_of(model), **options)
    assert model.config._attn_implementation == "sdpa"


def test_arguments_of_another_type_are_named():
    model = make("llama")
    memory = memory_of(model)
    for wrong in (None, 3, memory[0], memory.snapshot()):
        with pytest.raises(mx.DtypeError, match=f"memory is a {type(wrong).__name__}: expected a Memory"):
            mx.hf.attach(model, wrong)
    for call in (lambda: mx.hf.attach(3, memory), lambda: mx.Memory.for_model(3)):
        with pytest.raises(mx.DtypeError, match="model is a int"):
            call()
    for rows in (0, 1.5, "all"):
        with pytest.raises(mx.Error, match="rows="):
            memory_of(model, rows=rows)
    past = model(tokens(1, 4), use_cache=True).past_key_values
    with pytest.raises(mx.DtypeError, match="attention_mask is a int"):
        mx.from_cache(past, attention_mask=1)


@torch.no_grad()
def test_arguments_of_an_attachment_are_named():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model), trace=True) as a:
        for wrong in ({"window": 2.5}, {"window": True}, {"window": 0}, {"sinks": 1.5}, {"sinks": -1}):
            with pytest.raises(mx.Error, match=f"{next(iter(wrong))}="):
                a.cache(**wrong)
        a.ingest(tokens(2, 6))
        model(tokens(2, 3), position_ids=torch.arange(6, 9)[None])
        assert a.citations(1, row=1)
        for wrong in ({"n": 2.5}, {"n": -1}, {"row": -1}, {"row": "a"}, {"row": 2}):
            with pytest.raises(mx.Error, match=f"{next(iter(wrong))}="):
                a.citations(**wrong)
        for wrong in ({"chunk": True}, {"chunk": "a"}, {"chunk": 2**70}):
            with pytest.raises(mx.Error, match="chunk="):
                a.ingest(tokens(2, 3), **wrong)
        with pytest.raises(mx.ArgumentError, match=r"ids hold 1 to 999: LlamaForCausalLM knows 0 to 60"):
            a.ingest(torch.tensor([[1, 999]]))
        with pytest.raises(mx.ShapeError, match=r"ids are \[0, 4\]: expected at least one row"):
            a.ingest(tokens(0, 4))
        with pytest.raises(mx.DtypeError, match=r"ids are torch.float32"):
            a.ingest(torch.zeros(2, 3))


@torch.no_grad()
def test_rows_that_do_not_fit_are_told_what_to_do():
    model = make("llama")
    with (
        mx.hf.attach(model, memory_of(model), write="all") as a,
        pytest.raises(mx.ShapeError, match="batch has 0 rows"),
    ):
        model(tokens(0, 4))
    assert a.memory.rows == 1
    with mx.hf.attach(model, a.memory) as a:
        a.ingest(tokens(2, 6))
        with pytest.raises(mx.ShapeError, match="batch has 1 rows, the memory has 2: choose among its rows"):
            model(tokens(1, 3), position_ids=torch.arange(6, 9)[None])
        beams = {"num_beams": 3, "max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
        with pytest.raises(mx.ShapeError, match=r"batch has 6 rows, the memory has 2: memory.fork\(3\)"):
            model.generate(tokens(2, 4), past_key_values=a.cache(window=4, sinks=1), **beams)
        assert lengths(a.memory[0]) == [6, 6]
        a.memory.fork(3)
        model.generate(tokens(2, 4), past_key_values=a.cache(window=4, sinks=1), **beams)


@torch.no_grad()
def test_a_merge_is_compared_with_the_heads_of_its_layers_wherever_the_model_can_show_them():
    model = make_other("bart")
    a = mx.hf.attach(model, memory_of(model), merge=mx.torch.Bias(4))
    a.detach()
    with pytest.raises(mx.ShapeError, match="merge has 8 heads, layer 0 of BartForConditionalGeneration has 4"):
        mx.hf.attach(model, memory_of(model), merge=mx.torch.Bias(8))
    model = make_other("vit")
    memory = memory_of(model)
    model.main_input_name = "input_features"  # of which no example can be made
    mx.hf.attach(model, memory, merge=mx.torch.Gate(8)).detach()


def test_what_a_memory_of_a_model_refuses():
    model = make("gemma2", layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(mx.Error, match="keys='unrotated'"):
        memory_of(model, keys="unrotated")
    with pytest.raises(mx.Error, match=r"layer 0 of Gemma2ForCausalLM .* sliding window of 6"):
        memory_of(model, layers=[0, 1])
    with pytest.raises(mx.Error, match="key_dim"):
        memory_of(model, key_dim=4)
    llama = make("llama")
    with pytest.raises(mx.Error, match=r"layers \[1\] have no bank"):
        mx.hf.attach(llama, memory_of(llama, layers=[0]), layers=[0, 1])


def test_a_model_has_one_memory_at_a_time():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model)):
        with pytest.raises(mx.Error, match="attached already"):
            mx.hf.attach(model, memory_of(model))
        with pytest.raises(mx.Error, match="detach"):
            pickle.dumps(model)
    mx.hf.attach(model, memory_of(model)).detach()
    pickle.dumps(model)


@torch.no_grad()
def test_inputs_that_cannot_be_served():
    model, x = make("llama"), tokens(1, 4)
    with mx.hf.attach(model, memory_of(model)) as a:
        with pytest.raises(mx.Error, match="input_ids"):
            model()
        with pytest.raises(mx.Error, match="attention_mask of pads"):
            model(x, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool), past_key_values=a.cache())


@torch.no_grad()
def test_a_model_without_position_ids_is_read_into_an_empty_memory_in_one_chunk():
    model, x = make("llama"), tokens(1, 8)
    with mx.hf.attach(model, memory_of(model)) as a:
        a._names[a.stack.model].remove("position_ids")
        with pytest.raises(mx.Error, match="takes no position_ids"):
            a.ingest(x, chunk=4)
        a.ingest(x)
        with pytest.raises(mx.Error, match="takes no position_ids"):
            a.ingest(x)
        with pytest.raises(mx.Error, match="takes no position_ids"):
            model(x, past_key_values=a.cache())


@torch.no_grad()
def test_ingest_refuses_what_it_cannot_read():
    model = make("llama")
    a = mx.hf.attach(model, memory_of(model))
    with pytest.raises(mx.Error, match="ids"):
        a.ingest(torch.zeros(4, dtype=torch.long))
    with pytest.raises(mx.Error, match="attention_mask"):
        a.ingest(tokens(1, 4), torch.ones(1, 5))
    with pytest.raises(mx.Error, match="chunk"):
        a.ingest(tokens(1, 4), chunk=0)
    a.ingest(torch.zeros(1, 0, dtype=torch.long))
    assert len(a.memory) == 0
    a.detach()
    with pytest.raises(mx.Error, match="detached"):
        a.ingest(tokens(1, 4))


@torch.no_grad()
def test_generating_without_the_cache_keeps_working():
    model, inputs = make("llama"), unpadded(2, 9)
    want = generate(model, inputs)
    with mx.hf.attach(model, memory_of(model)):
        assert torch.equal(generate(model, inputs).sequences, want.sequences)
