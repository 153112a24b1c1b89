"""Plain keys: entries at one fixed distance equal entries that truly stand there, in every layout of pairs."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, SIZES, build, gap, generate, left_padded, make, memory_of, tokens  # noqa: E402
from mnemex.hf.rotary import LAYOUTS, Layout, Turn, turn, undone  # noqa: E402

SIZES = {**SIZES, "num_key_value_heads": 2}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2,
    "moe_intermediate_size": 16,
}  # fmt: skip


MODELS = {
    "llama": lambda: make("llama"),
    "llama eager": lambda: make("llama", "eager"),
    "qwen3, normed keys": lambda: make("qwen3"),
    "smollm3, one layer without": lambda: make("smollm3"),
    "gemma2, softcap": lambda: make("gemma2"),
    "gpt_oss, yarn, cosines once": lambda: make("gpt_oss"),
    "llama3": lambda: make("llama", rope_parameters=LLAMA3),
    "yarn": lambda: make("llama", rope_parameters=YARN),
    "glm, partial, neighbours": lambda: build(transformers.GlmConfig(**SIZES, head_dim=8)),
    "cohere, neighbours": lambda: build(transformers.CohereConfig(**SIZES)),
    "phi, partial": lambda: build(transformers.PhiConfig(**SIZES)),
    "deepseek, last": lambda: build(transformers.DeepseekV3Config(**{**SIZES, "num_key_value_heads": 4}, **LATENT)),
}


def at_one_place(model, keys, place, x, **options):
    """Write a text whose tokens all stand at one position."""
    memory = memory_of(model, keys=keys)
    with torch.no_grad(), mx.hf.attach(model, memory, write="all") as a:
        model(x, position_ids=torch.full_like(x, place), attention_mask=torch.ones_like(x), use_cache=False, **options)
        a.commit()
    return memory


@pytest.mark.parametrize("name", MODELS)
def test_point_14_a_fixed_distance_equals_true_positions_at_that_distance(name):
    model, x, query = MODELS[name](), tokens(2, 9, seed=1), tokens(2, 1, seed=2)
    plain, true = (at_one_place(model, keys, 30, x) for keys in ("plain", "rotated"))
    grads = []
    for distance in (5, 100):
        position = torch.full_like(query, 30 + distance)
        rest = {"position_ids": position, "use_cache": False}
        with mx.hf.attach(model, true, top_k=EVERY):
            want = model(query, **rest).logits
            grads.append(torch.autograd.grad(want.square().sum(), model.get_input_embeddings().weight)[0])
        for top_k in (EVERY, 9):
            with mx.hf.attach(model, plain, top_k=top_k, positions=distance):
                # Where the query stands plays no part.
                for place in (30 + distance, 7):
                    got = model(query, **{**rest, "position_ids": torch.full_like(query, place)}).logits
                    assert gap(got.detach(), want.detach()) <= 2e-5
                gradient = torch.autograd.grad(got.square().sum(), model.get_input_embeddings().weight)[0]
                assert gap(gradient, grads[-1]) <= 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_entries_at_the_start_equal_entries_that_truly_stand_there(name):
    model, x, query = MODELS[name](), tokens(2, 9, seed=1), tokens(2, 3, seed=2)
    plain, true = (at_one_place(model, keys, place, x) for keys, place in (("plain", 30), ("rotated", 0)))
    rest = {"position_ids": torch.arange(20, 23).expand(2, -1), "use_cache": False}
    found = []
    for memory, positions in ((true, "true"), (plain, "start")):
        with mx.hf.attach(model, memory, top_k=9, positions=positions):
            logits = model(query, **rest).logits
            gradient = torch.autograd.grad(logits.square().sum(), model.get_input_embeddings().weight)[0]
            found.append((logits.detach(), gradient))
    (want, of_want), (got, of_got) = found
    assert gap(got, want) <= 2e-5
    assert gap(of_got, of_want) <= 1e-3


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_point_14_true_positions_equal_attention_over_the_whole_text(name):
    model, x = MODELS[name](), tokens(2, 30, seed=11)
    want = model(x).logits[:, 20:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :20], chunk=9)
        got = model(x[:, 20:], position_ids=torch.arange(20, 30)[None]).logits
    assert gap(got, want) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_point_14_stored_keys_are_the_same_wherever_they_were_written(name):
    model, x = MODELS[name](), tokens(1, 6, seed=3)
    near, far = (at_one_place(model, "plain", place, x) for place in (0, 77))
    for layer in near.layers:
        one, two = (torch.from_numpy(m[layer].gather(np.arange(6)[None])[0]) for m in (near, far))
        assert gap(one, two) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_point_14_undoing_a_turn_and_its_gradient(layout):
    generator = torch.Generator().manual_seed(4)
    x, angle = torch.randn(2, 3, 5, 12, generator=generator), torch.randn(2, 5, 4, generator=generator)
    cos, sin = 1.3 * angle.cos(), 1.3 * angle.sin()
    assert gap(undone(turn(x, cos, sin, layout), (cos, sin), layout), x) <= 1e-6
    y = torch.randn(2, 3, 5, 12, generator=generator)
    view = Turn(cos, sin, layout)
    assert torch.allclose((view.seen(x) * y).sum(), (x * view.gradient(y)).sum(), rtol=1e-4)


def test_none_is_distance_zero_and_auto_follows_the_window():
    model, x = make("llama"), tokens(1, 5, seed=5)
    memory = at_one_place(model, "plain", 0, x)
    with mx.hf.attach(model, memory, positions="none") as a:
        assert a.rotary.distance == 0
    for positions in ("auto", "fixed"):
        with mx.hf.attach(model, memory, positions=positions) as a:
            assert a.rotary.distance == 512
            a.cache(window=33)
            assert a.rotary.distance == 33
    with mx.hf.attach(model, memory, positions=7) as a:
        a.cache(window=33)
        assert a.rotary.distance == 7


@pytest.mark.parametrize(("name", "beams"), [("llama", 1), ("llama", 3), ("gpt_oss", 1), ("smollm3", 3)])
@torch.no_grad()
def test_keys_that_leave_a_window_are_stored_plain(name, beams):
    model, inputs = make(name), left_padded([0, 4], 15, seed=6)
    with mx.hf.attach(model, memory_of(model, keys="plain"), top_k=EVERY) as a:
        cache = a.cache(window=5, sinks=2)
        out = generate(model, inputs, cache, num_beams=beams)
        memory = a.memory
    # The first layer's keys depend on the token alone.
    kept = {}
    reference = at_one_place(model, "plain", 0, torch.arange(61)[None])[0].gather(np.arange(61)[None])[0][0]
    rows = [row for row, pad in enumerate([0, 4]) for _ in range(beams)] if beams > 1 else [0, 1]
    pads = [[0, 4][row] for row in rows]
    lengths = memory[0].lengths[:, 0].tolist()
    for row, pad in enumerate(pads):
        keys = memory[0].gather(np.arange(lengths[row])[None], rows=[row])[0][0]
        nearest = np.abs(keys[:, :, None] - reference[:, None]).max((0, 3))
        assert nearest.min(-1).max() <= 1e-4
        kept[row] = nearest.argmin(-1)
        assert len(kept[row]) >= 15 - pad - 2 - 5
        assert (kept[row][:3] == inputs["input_ids"][rows[row], pad + 2 : pad + 5].numpy()).all()
    assert torch.isfinite(torch.stack(out.logits)).all()


@torch.no_grad()
def test_plain_keys_follow_crop_and_a_copy():
    model, x = make("llama"), tokens(1, 30, seed=7)
    with mx.hf.attach(model, memory_of(model, keys="plain"), top_k=EVERY) as a:
        cache = a.cache(window=8, sinks=1)
        model(x[:, :20], past_key_values=cache)
        model(tokens(1, 6, seed=8), past_key_values=cache)
        cache.crop(-6)
        twin = copy.deepcopy(cache)
        want = model(x[:, 20:], past_key_values=cache).logits
        assert torch.equal(model(x[:, 20:], past_key_values=twin).logits, want)
    # 30 tokens less the sink and the seven that are local; the first layer's keys depend on the token alone.
    reference = at_one_place(model, "plain", 0, x[:, 1:23])[0].gather(np.arange(22)[None])[0]
    for memory in (cache.memory, twin.memory):
        ids = memory[0].search(np.zeros((1, 2, 1, 8), np.float32), 22).ids[0, 0, 0]
        assert np.abs(memory[0].gather(np.sort(ids)[None])[0] - reference).max() <= 1e-4


@torch.no_grad()
def test_a_text_longer_than_the_trained_length_is_read_in_silence(tmp_path):
    model, x = make("llama", max_position_embeddings=16), tokens(1, 40, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mx.hf.attach(model, memory_of(model, keys="plain"), top_k=4, positions=8) as a:
            a.ingest(x, chunk=10)
            assert a.next_position == 0
            want = model(x[:, :5]).logits
    a.memory.save(tmp_path / "memory")
    again = mx.open(tmp_path / "memory")
    assert again.keys == a.memory.copy().keys == "plain"
    with mx.hf.attach(model, again, top_k=4, positions=8):
        assert torch.equal(model(x[:, :5]).logits, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_models_find_their_layout(dtype):
    model = make("llama").to(dtype)
    with mx.hf.attach(model, memory_of(model, keys="plain"), top_k=4) as a:
        assert set(a.rotary.layouts.values()) == {Layout(False, "halves", False)}
        a.ingest(tokens(1, 12, seed=10))
        assert torch.isfinite(model(tokens(1, 4)).logits).all()


def test_point_14_an_unknown_layout_and_what_plain_keys_do_not_serve_are_refused():
    gpt2, llama = make("gpt2"), make("llama")
    with pytest.raises(mx.Error, match=r"GPT2LMHeadModel .* keys='rotated'"):
        memory_of(gpt2, keys="plain")
    plain, rotated = memory_of(llama, keys="plain"), memory_of(llama)
    for memory, positions, match in (
        (plain, "true", "positions='true'.*keys='rotated'"),
        (rotated, "fixed", "positions='fixed'.*keys='plain'"),
        (rotated, "none", "positions='none'.*keys='plain'"),
        (plain, -1, "positions=-1"),
        (plain, "far", "positions='far'"),
        (plain, 2.5, "positions=2.5"),
    ):
        with pytest.raises(mx.Error, match=match):
            mx.hf.attach(llama, memory, positions=positions)
    odd = make("llama")
    embedding = odd.model.rotary_emb
    embedding.forward = lambda x, position_ids: tuple(
        torch.cat([y[..., :4], y[..., 4:].roll(1, -1)], -1) for y in type(embedding).forward(embedding, x, position_ids)
    )
    with pytest.raises(mx.Error, match="LlamaForCausalLM turns the keys of layer 0 in none"):
        memory_of(odd, keys="plain")
