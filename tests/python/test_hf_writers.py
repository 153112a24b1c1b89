"""Several writers of one memory, other positions, other shapes: nothing is lost, nothing fits by chance."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, gap, lengths, make, memory_of, sharpened, tokens  # noqa: E402


def stage_directly(memory, n):
    rows = memory.rows
    for layer in memory.layers:
        bank = memory[layer]
        x = np.ones((rows, bank.heads, n, bank.key_dim), np.float32)
        memory.stage(layer, x, x)


@pytest.mark.parametrize("through", ["ingest", "stage"])
@torch.no_grad()
def test_reset_takes_back_what_the_cache_wrote_and_nothing_else(through):
    model, memory = make("llama"), None
    memory = memory_of(model)
    with mx.hf.attach(model, memory, top_k=EVERY) as a:
        cache = a.cache(window=3, sinks=0)
        model(tokens(2, 10), past_key_values=cache)
        assert lengths(memory[0]) == [8, 8]
        if through == "ingest":
            a.ingest(tokens(2, 20, seed=1))
        else:
            stage_directly(memory, 20)
            memory.commit()
        model(tokens(2, 5, seed=2), past_key_values=cache)
        with pytest.raises(mx.Error, match="written to beside this cache"):
            cache.crop(-10)
        assert cache.get_seq_length() == 15
        after = memory.next_position
        cache.reset()
        assert lengths(memory[0]) == lengths(memory[1]) == [20, 20]
        assert [x.tolist() for x in memory[1].find()] == [list(range(8, 28))] * 2
        assert memory.next_position == after


@torch.no_grad()
def test_the_newest_cache_of_a_memory_writes_whichever_attachment_made_it():
    one, two = make("llama"), make("llama")
    memory = memory_of(one)
    with mx.hf.attach(one, memory) as a, mx.hf.attach(two, memory) as b:
        older, newer = a.cache(window=2), b.cache(window=2)
        two(tokens(1, 5), past_key_values=newer)
        with pytest.raises(mx.Error, match="newer cache"):
            one(tokens(1, 5), past_key_values=older)


@torch.no_grad()
def test_reading_a_text_leaves_what_is_staged_alone():
    model, x = make("llama"), tokens(1, 6)
    with mx.hf.attach(model, memory_of(model), write="all") as a:
        model(x)
        with pytest.raises(mx.Error, match="staged"):
            a.ingest(x)
        a.commit()
        assert lengths(a.memory[0]) == [6]


@pytest.mark.parametrize("name", ["Roberta", "Camembert", "Data2VecText"])
@torch.no_grad()
def test_positions_that_start_past_the_pad_token(name):
    config = getattr(transformers, f"{name}Config")(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, is_decoder=True, type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = sharpened(getattr(transformers, f"{name}ForCausalLM")(config))
    x = tokens(2, 20, seed=3)
    want = model(x).logits[:, 12:]
    for write in ("ingest", "all"):
        with mx.hf.attach(model, memory_of(model), top_k=EVERY, write="all" if write == "all" else None) as a:
            assert a.next_position == 2
            if write == "all":
                model(x[:, :12], use_cache=False)
                a.commit()
            else:
                a.ingest(x[:, :12], chunk=5)
            assert a.next_position == 14
            assert gap(model(x[:, 12:], position_ids=torch.arange(14, 22)[None]).logits, want) <= 1e-5


@pytest.mark.parametrize("change", [{"heads": 1}, {"key_dim": 4}, {"value_dim": 1}])
@pytest.mark.parametrize("write", ["off", "all"])
@torch.no_grad()
def test_a_bank_of_another_shape_is_named(change, write):
    model, x = make("llama"), tokens(1, 6)
    right = memory_of(model)[0]
    sizes = {"heads": right.heads, "key_dim": right.key_dim, "value_dim": right.value_dim, **change}
    memory = mx.Memory({layer: mx.Bank(**sizes) for layer in (0, 1)})
    with (
        mx.hf.attach(model, memory, write=write),
        pytest.raises(mx.ShapeError, match="the bank of layer 0 has heads, key_dim and value_dim"),
    ):
        model(x)


def test_another_metric_than_attention_has_is_refused():
    model, metric = make("llama"), "l2"
    with pytest.raises(mx.Unsupported, match=f"metric='{metric}'"):
        memory_of(model, metric=metric)
    right = memory_of(model)[0]
    bank = mx.Bank(heads=right.heads, key_dim=right.key_dim, value_dim=right.value_dim, metric=metric)
    with pytest.raises(mx.Unsupported, match=f"metric='{metric}'"):
        mx.hf.attach(model, mx.Memory({0: bank, 1: bank}))


@torch.no_grad()
def test_attention_that_is_changed_while_attached_does_not_silently_lose_the_memory():
    model, x = make("llama"), tokens(1, 6)
    with mx.hf.attach(model, memory_of(model)):
        model.set_attn_implementation("eager")
        with pytest.raises(mx.Error, match="set to 'eager' while a memory was attached"):
            model(x)


def test_rotary_positions_of_complex_numbers_are_refused_by_name():
    config = transformers.DeepseekV2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=1, n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
    )  # fmt: skip
    model = transformers.DeepseekV2ForCausalLM(config).eval()
    with pytest.raises(mx.Unsupported, match="complex numbers"):
        memory_of(model, keys="plain")
