"""The window cache reproduces DynamicCache in generate, whatever generate does with it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import (  # noqa: E402
    BASES,
    EVERY,
    FAMILIES,
    SDPA,
    attention_outputs,
    gap,
    generate,
    left_padded,
    lengths,
    make,
    memory_of,
    tokens,
    unpadded,
)

WINDOWS = [1, 7, 64]
GREEDY = {}
SAMPLED = {"do_sample": True, "temperature": 1.3}
BEAMS = {"num_beams": 4}
MODES = {"greedy": GREEDY, "sampled": SAMPLED, "beams": BEAMS}


def own_gap(name: str, ids: torch.Tensor) -> float:
    """How far the model's own two attention implementations are apart on this text; float64 where it has one only."""
    model = make(name)
    if name in SDPA:
        return gap(make(name, "eager")(ids).logits, model(ids).logits)
    wide = make(name, experts_implementation="eager") if name == "gpt_oss" else make(name)
    return gap(model(ids).logits, wide.double()(ids).logits)


def compare(name, inputs, window, how, *, base=None, sinks=4, attach=None, seed=3):
    """Generate twice, with DynamicCache and through the cache; return the attachment's memory."""
    model = make(name, base)
    torch.manual_seed(seed)
    want = generate(model, inputs, **how)
    with mx.hf.attach(model, memory_of(model), **{"top_k": EVERY, **(attach or {})}) as a:
        torch.manual_seed(seed)
        got = generate(model, inputs, a.cache(window=window, sinks=sinks), **how)
        assert torch.equal(got.sequences, want.sequences)
        assert len(got.logits) == len(want.logits)
        worst = max(gap(x, y) for x, y in zip(got.logits, want.logits, strict=True))
        return a.memory, want, worst


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_point_02_tokens_equal_and_logits_are_as_close_as_the_model_is_to_itself(name, mode, window):
    _, want, worst = compare(name, unpadded(2, 21, seed=11), window, MODES[mode])
    assert worst <= 4 * own_gap(name, want.sequences)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
@torch.no_grad()
def test_point_02_left_padded_batches_with_chunked_prefill(name, mode, window):
    inputs = left_padded([0, 9, 3], 19, seed=12)
    for chunk in (None, 5, 8):
        memory, _, worst = compare(name, inputs, window, {**MODES[mode], "prefill_chunk_size": chunk})
        assert worst <= 1e-5
    if window == 1 and mode == "greedy":
        # 30 columns were fed; four sinks of each row and its pads are not in the memory.
        assert lengths(memory[0]) == [26, 17, 23]


@pytest.mark.parametrize(("name", "base"), BASES)
@torch.no_grad()
def test_left_padded_batches_on_both_bases(name, base):
    for sinks in (0, 4):
        _, _, worst = compare(name, left_padded([0, 9, 3], 19, seed=13), 5, GREEDY, base=base, sinks=sinks)
        assert worst <= 1e-5


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_models_that_alternate_with_sliding_layers(name, mode):
    layers = ["sliding_attention", "full_attention"]
    model, inputs = make(name, layer_types=layers), left_padded([0, 6], 15, seed=14)
    for first in (layers, layers[::-1]):
        model = make(name, layer_types=first)
        torch.manual_seed(3)
        want = generate(model, inputs, **MODES[mode])
        with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
            torch.manual_seed(3)
            got = generate(model, inputs, a.cache(window=4, sinks=2), **MODES[mode])
        assert torch.equal(got.sequences, want.sequences)


@pytest.mark.parametrize("chosen", [[0], [1]])
@pytest.mark.parametrize("base", ["sdpa", "eager"])
@torch.no_grad()
def test_a_subset_of_layers(chosen, base):
    for inputs in (unpadded(2, 17, seed=15), left_padded([0, 6], 17, seed=16)):
        for how in (GREEDY, BEAMS, {"prefill_chunk_size": 5}):
            model = make("llama", base)
            want = generate(model, inputs, **how)
            with mx.hf.attach(model, memory_of(model, layers=chosen), top_k=EVERY) as a:
                got = generate(model, inputs, a.cache(window=5, sinks=2), **how)
            assert torch.equal(got.sequences, want.sequences)
            assert max(gap(x, y) for x, y in zip(got.logits, want.logits, strict=True)) <= 1e-5


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 4, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
    ],
)
@torch.no_grad()
def test_point_15_more_sequences_than_prompts(how):
    for window in (1, 7):
        _, _, worst = compare("llama", left_padded([0, 4], 14, seed=17), window, how)
        assert worst <= 1e-5


@pytest.mark.parametrize("window", [1, 5, 7, 64])
@torch.no_grad()
def test_point_15_prompt_lookup_and_assisted_decoding(window):
    text = tokens(1, 6, seed=18).repeat(1, 4)
    inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    for how in ({"prompt_lookup_num_tokens": 6}, {"assistant_model": make("llama", seed=9, num_hidden_layers=1)}):
        for name in ("llama", "gemma2"):
            _, _, worst = compare(name, inputs, window, how)
            assert worst <= 1e-5


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_two_generate_calls_on_one_cache(name, window):
    model = make(name)
    for pads in ([0, 0], [0, 5]):
        first = left_padded(pads, 14, seed=19)
        more = tokens(2, 6, seed=20)
        results = []
        for ours in (False, True):
            a = mx.hf.attach(model, memory_of(model), top_k=EVERY) if ours else None
            cache = a.cache(window=window, sinks=2) if ours else transformers.DynamicCache(config=model.config)
            one = generate(model, first, cache)
            ids = torch.cat([one.sequences, more], 1)
            mask = torch.cat([first["attention_mask"], ids.new_ones(2, ids.shape[1] - 14)], 1)
            results.append(generate(model, {"input_ids": ids, "attention_mask": mask}, cache))
            if ours:
                assert cache.get_seq_length() == 14 + 12 + 6 + 12 - 1
                a.detach()
        want, got = results
        assert torch.equal(got.sequences, want.sequences)
        assert max(gap(x, y) for x, y in zip(got.logits, want.logits, strict=True)) <= 1e-5


@torch.no_grad()
def test_a_cache_continues_the_positions_of_what_was_ingested():
    model, x = make("gpt2"), tokens(1, 40, seed=21)
    want = generate(model, {"input_ids": x, "attention_mask": torch.ones_like(x)})
    for chunk in (None, 5):
        with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
            a.ingest(x[:, :28])
            prompt = {"input_ids": x[:, 28:], "attention_mask": torch.ones(1, 12, dtype=torch.long)}
            got = generate(model, prompt, a.cache(window=4, sinks=2), prefill_chunk_size=chunk)
        assert torch.equal(got.sequences[:, 12:], want.sequences[:, 40:])
        assert max(gap(a_, b) for a_, b in zip(got.logits, want.logits, strict=True)) <= 1e-5
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :28])
        cache = a.cache(window=4)
        model(x[:, 28:34], past_key_values=cache)
        got = model(x[:, 34:], past_key_values=cache).logits
        assert gap(got[:, -1], want.logits[0]) <= 1e-5
        a.ingest(tokens(1, 3))
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :28])
        cache = a.cache(window=4)
        model(x[:, 28:34], position_ids=torch.arange(28, 34)[None], past_key_values=cache)
        got = model(x[:, 34:], position_ids=torch.arange(34, 40)[None], past_key_values=cache).logits
        assert gap(got[:, -1], want.logits[0]) <= 1e-5


@torch.no_grad()
def test_few_entries_read_near_the_whole_and_each_query_reads_them_itself():
    model, inputs = make("llama"), unpadded(2, 40, seed=32)
    want = model(**inputs).logits[:, -1]
    errors = []
    for top_k in (1, 8, 64):
        with mx.hf.attach(model, memory_of(model), top_k=top_k) as a:
            cache = a.cache(window=4, sinks=1)
            model(inputs["input_ids"][:, :-1], past_key_values=cache)
            got = model(inputs["input_ids"][:, -1:], past_key_values=cache).logits[:, -1]
            errors.append(gap(got, want))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1e-5


@torch.no_grad()
def test_each_attention_output_equals_that_of_the_default_cache():
    model, x = make("qwen3"), tokens(2, 30, seed=38)
    spans = [slice(0, 20), slice(20, 21), slice(21, 26), slice(26, 30)]
    plain = transformers.DynamicCache(config=model.config)
    want = attention_outputs(model, lambda: [model(x[:, s], past_key_values=plain) for s in spans])
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=4, sinks=2)
        got = attention_outputs(model, lambda: [model(x[:, s], past_key_values=cache) for s in spans])
    for g, w in zip(got, want, strict=True):
        assert gap(g, w) <= 1e-5
