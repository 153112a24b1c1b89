"""What a window cache holds, gives back, and refuses, between forward passes."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, gap, generate, left_padded, lengths, make, memory_of, tokens, unpadded  # noqa: E402


@pytest.mark.parametrize("number", [int, torch.tensor])  # assisted decoding gives the one or the other
@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("n_cropped", [1, 3, 7, 15, 21, 24])
@torch.no_grad()
def test_point_15_crop_takes_tokens_back_from_window_and_memory(window, n_cropped, number):
    model, batch = make("llama"), left_padded([0, 4], 24, seed=22)
    x, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    kept = 24 - n_cropped
    other = tokens(2, 9, seed=23)
    masks = torch.cat([mask[:, :kept], torch.ones(2, 9, dtype=torch.long)], 1)
    after = (masks.cumsum(1) - 1).clamp(min=0)[:, kept:]
    want = model(
        torch.cat([x[:, :kept], other], 1), attention_mask=masks, position_ids=(masks.cumsum(1) - 1).clamp(min=0)
    )
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=window, sinks=2)
        for start in range(0, 24, 8):
            span = slice(start, start + 8)
            model(
                x[:, span], attention_mask=mask[:, : span.stop], position_ids=positions[:, span], past_key_values=cache
            )
        cache.crop(number(-n_cropped))
        assert cache.get_seq_length() == kept
        got = [
            model(other[:, i : i + 3], attention_mask=masks[:, : kept + i + 3], position_ids=after[:, i : i + 3],
                  past_key_values=cache).logits
            for i in (0, 3, 6)
        ]  # fmt: skip
    assert gap(torch.cat(got, 1), want.logits[:, kept:]) <= 1e-5


@torch.no_grad()
def test_point_15_rows_are_repeated_selected_and_reordered_with_their_memory():
    model, batch = make("qwen3"), left_padded([0, 3], 16, seed=24)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1)
    moves = [
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_select_indices(torch.tensor([True, False])), [0]),
        (lambda c: c.reorder_cache(torch.tensor([1, 1])), [1, 1]),
    ]
    for move, rows in moves:
        logits = []
        for ours in (False, True):
            a = mx.hf.attach(model, memory_of(model), top_k=EVERY) if ours else None
            cache = a.cache(window=4, sinks=2) if ours else transformers.DynamicCache(config=model.config)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            model(**batch, position_ids=positions[:, :16], past_key_values=cache)
            move(cache)
            next_ids = tokens(2, 3, seed=25)[rows]
            logits.append(
                model(
                    next_ids, attention_mask=mask[rows], position_ids=positions[rows, 16:], past_key_values=cache
                ).logits
            )
            if ours:
                assert a.memory.rows == len(rows)
                a.detach()
        assert gap(logits[1], logits[0]) <= 1e-5


@torch.no_grad()
def test_a_copy_has_a_memory_of_its_own():
    model, x = make("llama"), tokens(1, 20, seed=26)
    one, two = tokens(1, 8, seed=27), tokens(1, 8, seed=28)
    want = [model(torch.cat([x, more], 1)).logits[:, 20:] for more in (one, two)]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=5)
        model(x, past_key_values=cache)
        twin = copy.deepcopy(cache)
        got = [
            torch.cat([model(more[:, i : i + 2], past_key_values=c).logits for i in range(0, 8, 2)], 1)
            for c, more in ((cache, one), (twin, two))
        ]
        assert twin.memory is not a.memory
    for g, w in zip(got, want, strict=True):
        assert gap(g, w) <= 1e-5


@torch.no_grad()
def test_point_15_reset_forgets_the_tokens_of_this_cache_and_keeps_what_was_ingested():
    model, x = make("llama"), tokens(1, 30, seed=29)
    want = generate(model, {"input_ids": x, "attention_mask": torch.ones_like(x)}).sequences[:, 20:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :20])
        cache = a.cache(window=3)
        prompt = {"input_ids": x[:, 20:], "attention_mask": torch.ones(1, 10, dtype=torch.long)}
        for _ in range(2):
            assert torch.equal(generate(model, prompt, cache).sequences, want)
            assert lengths(a.memory[0])[0] > 20
            cache.reset()
            assert cache.get_seq_length() == 0
            assert lengths(a.memory[0]) == [20]


@torch.no_grad()
def test_a_reset_cache_serves_another_batch():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=3)
        for rows in (2, 3, 1):
            inputs = unpadded(rows, 15, seed=31)
            got = generate(model, inputs, cache).sequences
            cache.reset()
            assert torch.equal(got, generate(model, inputs).sequences)


@torch.no_grad()
def test_window_and_sinks_bound_what_is_local():
    model, inputs = make("llama"), unpadded(1, 40, seed=33)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=8, sinks=3)
        first = generate(model, inputs, cache).sequences
        assert lengths(a.memory[0]) == [51 - 7 - 3]
        before = cache.nbytes
        ids = torch.cat([first, tokens(1, 200, seed=34)], 1)
        generate(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, cache)
        assert lengths(a.memory[0]) == [51 + 1 + 200 + 11 - 7 - 3]
        assert cache.nbytes <= 2 * before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_mode_and_back(mode):
    model, inputs = make("llama"), unpadded(2, 12, seed=35)
    with torch.no_grad():
        want = generate(model, inputs)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=3)
        with torch.inference_mode():
            model(inputs["input_ids"][:, :6], past_key_values=cache)
        with mode():
            model(inputs["input_ids"][:, 6:9], past_key_values=cache)
        with torch.no_grad():
            got = model(inputs["input_ids"][:, 9:], past_key_values=cache).logits
    assert gap(got[:, -1], want.logits[0]) <= 1e-5


def test_gradients_flow_through_the_window():
    model, x = make("llama"), tokens(1, 20, seed=36)
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=6, sinks=2)
        total = sum(model(x[:, i : i + 5], past_key_values=cache).logits.square().mean() for i in range(0, 20, 5))
        total.backward()
    grads = [p.grad for n, p in model.named_parameters() if "k_proj" in n]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in grads)


@torch.no_grad()
def test_a_forward_pass_that_fails_can_be_repeated():
    model, x = make("llama"), tokens(1, 20, seed=37)
    want = model(x).logits[:, 15:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        cache = a.cache(window=4)
        model(x[:, :10], past_key_values=cache)
        for place in (model.model.layers[1], model.lm_head):
            for chunk in (x[:, 10:11], x[:, 10:15]):
                hook = place.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    model(chunk, past_key_values=cache)
                hook.remove()
                assert cache.get_seq_length() == 10
        model(x[:, 10:15], past_key_values=cache)
        assert gap(model(x[:, 15:], past_key_values=cache).logits, want) <= 1e-5


@pytest.mark.parametrize("through", ["cache", "ingest"])
@torch.no_grad()
def test_an_interrupted_commit_leaves_nothing_staged(through, monkeypatch):
    model, x = make("llama"), tokens(1, 20, seed=38)
    memory = memory_of(model)
    with mx.hf.attach(model, memory, top_k=EVERY) as a:

        def read(span):
            if through == "ingest":
                a.ingest(x[:, span], chunk=5)
            else:
                model(x[:, span], past_key_values=cache)

        cache = a.cache(window=4)
        read(slice(0, 10))
        before = {layer: lengths(memory[layer]) for layer in memory.layers}
        with monkeypatch.context() as patch:
            patch.setattr(mx.Memory, "commit", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                read(slice(10, 15))
        memory.commit()
        assert {layer: lengths(memory[layer]) for layer in memory.layers} == before


@torch.no_grad()
def test_the_cache_refuses_to_work_where_its_memory_is_not_read():
    model, other = make("llama"), make("llama", seed=5)
    x = tokens(1, 6)
    a = mx.hf.attach(model, memory_of(model), top_k=4)
    cache = a.cache(window=2)
    model(x, past_key_values=cache)
    with pytest.raises(mx.Error, match="attached"):
        other(x, past_key_values=cache)
    with mx.hf.attach(other, memory_of(other)), pytest.raises(mx.Error, match="made for"):
        other(x, past_key_values=cache)
    newer = a.cache(window=2)
    with pytest.raises(mx.Error, match="newer cache"):
        model(x, past_key_values=cache)
    model(x, past_key_values=newer)
    with pytest.raises(mx.Error, match="3 rows"):
        model(x.repeat(3, 1), past_key_values=newer)
    a.detach()
    with pytest.raises(mx.Error, match="not attached"):
        model(x, past_key_values=newer)
    with pytest.raises(mx.Error, match="detached"):
        a.cache()


@torch.no_grad()
def test_wrong_sizes_are_named():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model)) as a:
        with pytest.raises(mx.Error, match="window"):
            a.cache(window=0)
        with pytest.raises(mx.Error, match="sinks"):
            a.cache(sinks=-1)
        with pytest.raises(mx.Error, match="crop"):
            a.cache().crop(3)
    for write in ("off", "all"):
        with mx.hf.attach(model, memory_of(model), write=write) as a, pytest.raises(mx.Error, match="evicted"):
            a.cache()
