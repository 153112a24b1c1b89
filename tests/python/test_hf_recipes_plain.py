"""Recipes on a small Llama, end to end: each against its paper's definition, written out layer by layer."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="recipes of decoders need torch")
pytest.importorskip("transformers", reason="recipes of decoders need transformers")

import mnemex as mx  # noqa: E402
import plain_adapters as plain  # noqa: E402
import plain_llama  # noqa: E402
from hf_models import gap, make, tokens  # noqa: E402
from plain_consolidate import Lane, score  # noqa: E402

SCALE = 8**-0.5


def llama(**changes):
    return make("llama", num_hidden_layers=3, **changes)


def local_attention(_, q, k, v, *__):
    return plain_llama.local(q, k, v)


@torch.no_grad()
def test_the_llama_that_is_written_out_is_the_model():
    model, x = llama(), tokens(2, 9)
    assert gap(plain_llama.logits(model, x, local_attention), model(x).logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("positions", ["start", 5])
def test_camelot_reads_and_writes_segment_by_segment(positions):
    model, segment, capacity = llama(), 6, 9
    # No token twice in a segment: equal keys would be equally near.
    draw = torch.Generator().manual_seed(0)
    text = torch.stack([torch.cat([2 + torch.randperm(20, generator=draw)[:6] for _ in range(10)]) for _ in range(2)])
    parts = mx.recipes.camelot(capacity=capacity, threshold=0.6, positions=positions)
    memory = mx.Memory.for_model(model, rows=2, **parts.bank)
    policy, evict = parts.bank["write"], parts.bank["evict"]
    lanes = defaultdict(Lane)
    merged = evicted = 0
    with mx.hf.attach(model, memory, **parts.attach) as a:
        for clock, start in enumerate(range(0, text.shape[1], segment)):
            x, fresh = text[:, start : start + segment], {}

            def attend(layer, q, k, v, plain_q, plain_k, fresh=fresh):
                fresh[layer] = plain_k, v
                # Slots at position 0 are met by queries as they are; those at a distance by queries turned to it.
                far_q = q if positions == "start" else plain_llama.turned(plain_q, torch.full((q.shape[2],), positions))
                far = [torch.full((*k.shape[:3], 1, k.shape[-1]), torch.nan) for _ in range(2)]
                for row, head, token in np.ndindex(*k.shape[:3]):
                    entries = lanes[layer, row, head].entries
                    alike = {i: score("cos", e.key, plain_k[row, head, token].numpy()) for i, e in entries.items()}
                    if alike:
                        nearest = entries[max(alike, key=alike.__getitem__)]
                        far[0][row, head, token, 0] = torch.from_numpy(nearest.key)
                        far[1][row, head, token, 0] = torch.from_numpy(nearest.value)
                return plain.prepended(q, k, v, far_q, *far, torch.ones(q.shape[2], q.shape[2]).tril(), SCALE)

            want = plain_llama.logits(model, x, attend)
            assert gap(model(x, use_cache=False).logits, want) < 2e-5
            receipts = a.commit()
            evicted += sum(receipt.evicted for receipt in receipts)
            for layer, (k, v) in fresh.items():
                for row, head in np.ndindex(*k.shape[:2]):
                    new = zip(k[row, head].numpy(), v[row, head].numpy(), strict=True)
                    landed = lanes[layer, row, head].write(policy, evict, capacity, dict(enumerate(new, start)), clock)
                    merged += sum(id_ != to for id_, to in landed.items())
            for layer in memory.layers:
                assert memory[layer].lengths.max() <= capacity
                for row, head in np.ndindex(2, 2):
                    assert memory[layer].lengths[row, head] == len(lanes[layer, row, head].entries)
    assert merged > 50
    assert evicted > 50


@torch.no_grad()
def test_camelot_ingests_text_of_any_length_within_its_slots():
    model = llama()
    parts = mx.recipes.camelot(capacity=16, threshold=0.8)
    memory = mx.Memory.for_model(model, **parts.bank)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        a.ingest(tokens(1, 300) % 12 + 2, chunk=8)
        assert max(memory[layer].lengths.max() for layer in memory.layers) == 16
        past = model(tokens(1, 5), use_cache=True).past_key_values
        with pytest.raises(mx.Unsupported, match="from earlier passes"):
            model(tokens(1, 5), past_key_values=past)
        memory.rollback()
    slots = memory[0].search(np.zeros((1, 2, 1, 8), np.float32), 16)
    assert memory[0].gather(slots, columns=["count"])[2]["count"].sum() > 100
    with pytest.raises(mx.Unsupported, match="leave trace out"):
        mx.hf.attach(model, memory, **parts.attach, trace=True)


@torch.no_grad()
@pytest.mark.parametrize("threshold", [None, 0.25, 0.6])
def test_extended_mind_finds_by_cosine_and_weighs_by_dot_products(threshold):
    model, text, question = llama(), tokens(2, 40), tokens(2, 7, seed=1)
    parts = mx.recipes.extended_mind(k=5, threshold=threshold)
    memory = mx.Memory.for_model(model, **parts.bank)
    stored, read = {}, defaultdict(float)

    def write(layer, q, k, v, _, plain_k):
        stored[layer] = plain_k, v
        return plain_llama.local(q, k, v)

    def attend(layer, q, k, v, *_):
        out = torch.zeros_like(q)
        for row, head, token in np.ndindex(*q.shape[:3]):
            keys, values = (x[row, head // 2] for x in stored[layer])
            alike = plain.cosine(keys, q[row, head, token])
            best = alike.topk(5).indices
            best = best if threshold is None else best[alike[best] >= threshold]
            near = slice(token + 1)
            logits = torch.cat([keys[best], k[row, head // 2, near]]) @ q[row, head, token] * SCALE
            weights = logits.softmax(0)
            out[row, head, token] = weights @ torch.cat([values[best], v[row, head // 2, near]])
            if row == 1:
                for entry, weight in zip(best.tolist(), weights, strict=False):
                    read[entry] += float(weight)
        return out

    plain_llama.logits(model, text, write)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        a.ingest(text, chunk=40)
        assert gap(model(question).logits, plain_llama.logits(model, question, attend)) < 2e-5
        cited = a.citations(100, row=1)
        assert cited[0].source == 0
        heaviest = max(read, key=read.__getitem__)
        assert any(c.start <= heaviest < c.end for c in cited)
        total = sum(read.values()) / (3 * 4 * 7)
        shares = sum(float((trace.mass[1] * trace.share[1][..., None]).sum()) for trace in a.trace.values())
        assert shares / (3 * 4 * 7) == pytest.approx(total, abs=1e-4)
        generated = model.generate(question, past_key_values=a.cache(window=16), max_new_tokens=4, do_sample=False)
        assert generated.shape == (2, 11)


def test_a_memorizing_transformer_gates_one_layer_and_trains():
    model, text = llama(), tokens(2, 24)
    parts = mx.recipes.memorizing_transformer(4, 1, capacity=10, k=3)
    memory = mx.Memory.for_model(model, **parts.bank)
    assert memory.layers == (1,)
    stored: list = []

    def attend(layer, q, k, v, plain_q, plain_k):
        near = plain_llama.local(q, k, v)
        if layer != 1:
            return near
        held = [torch.cat(x, 2)[:, :, -10:] for x in zip(*stored, strict=True)]
        stored.append((plain_k.detach(), v.detach()))
        if not held:
            return near
        keys, values = (x.repeat_interleave(2, 1) for x in held)
        logits = plain_q @ keys.transpose(-1, -2) * SCALE
        least = logits.topk(3).values[..., -1:]
        far = logits.masked_fill(logits < least, -torch.inf).softmax(-1) @ values
        gate = torch.sigmoid(gates).view(-1, 1, 1)
        return gate * far + (1 - gate) * near

    gates = torch.zeros(4)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        (learned,) = a.parameters()
        assert torch.equal(learned.detach(), gates)  # a half of each at the start
        with torch.no_grad():
            learned.normal_()
            gates = learned.detach().clone().requires_grad_()
        for start in range(0, 24, 6):
            x = text[:, start : start + 6]
            want, got = plain_llama.logits(model, x, attend), model(x, use_cache=False).logits
            assert gap(got.detach(), want.detach()) < 2e-5
            if start:
                ours, plain_gradient = (
                    torch.autograd.grad(y.square().mean(), of)[0] for y, of in ((got, learned), (want, gates))
                )
                assert gap(ours, plain_gradient) < 1e-3
            a.commit()
            assert memory[1].lengths.max() <= 10


@torch.no_grad()
@pytest.mark.parametrize("policy", ["lra", "lfa"])
def test_attendre_keeps_what_is_attended_to(policy):
    model, text = llama(), tokens(1, 60)
    wide = mx.recipes.attendre(policy=policy, capacity=100, k=100, window=8)
    memory = mx.Memory.for_model(model, **wide.bank)
    with mx.hf.attach(model, memory, **wide.attach) as a:
        got = model.generate(text, past_key_values=a.cache(**wide.cache), max_new_tokens=6, do_sample=False)
    assert torch.equal(got, model.generate(text, max_new_tokens=6, do_sample=False))
    kept = {}
    for evict in (wide.bank["evict"], "fifo"):
        parts = dataclasses.replace(
            mx.recipes.attendre(policy=policy, capacity=12, k=3, window=8),
            bank={**wide.bank, "capacity": 12, "evict": evict},
        )
        memory = mx.Memory.for_model(model, **parts.bank)
        with mx.hf.attach(model, memory, top_k=3, write="evicted") as a:
            cache = a.cache(**parts.cache)
            for token in text.split(1, 1):
                model(token, past_key_values=cache)
                assert memory[0].lengths.max() <= 12
        kept[str(evict)] = memory[0].search(np.zeros((1, 2, 1, 8), np.float32), 12).ids
    one, other = kept.values()
    assert (np.sort(one) != np.sort(other)).any()
    with pytest.raises(mx.ArgumentError, match="'lra' or 'lfa'"):
        mx.recipes.attendre(policy="lru")


@torch.no_grad()
def test_sirllm_keeps_what_surprised_the_model():
    model, rounds = llama(), tokens(1, 40).split(10, 1)
    parts = mx.recipes.sirllm(capacity=12, sinks=2, recent=3, decay=0.5)
    memory = mx.Memory.for_model(model, **parts.bank)
    kept: list[tuple[int, float]] = []
    held = {layer: [] for layer in memory.layers}

    def attend(layer, q, k, v, *_):
        if kept:
            far = [torch.cat([x[i] for x in held[layer]], 2) for i in (0, 1)]
            chosen = [id_ for id_, _ in kept]
            k, v = (torch.cat([x[:, :, chosen], y], 2) for x, y in zip(far, (k, v), strict=True))
        return plain_llama.local(q, k, v)

    with mx.hf.attach(model, memory, **parts.attach) as a:
        for number, x in enumerate(rounds):
            start = 10 * number
            out = model(x, position_ids=torch.arange(start, start + 10)[None], use_cache=True)
            assert gap(out.logits, plain_llama.logits(model, x, attend, start=start)) < 2e-5
            guesses = out.logits[0, :-1].log_softmax(-1).gather(-1, x[0, 1:, None])[:, 0]
            surprise = torch.cat([-guesses.min()[None], -guesses])
            for layer, of_layer in enumerate(out.past_key_values.layers):
                keys, values = of_layer.keys, of_layer.values
                held[layer].append((keys, values))
                memory.stage(
                    layer, keys, values, positions=np.arange(start, start + 10)[None],
                    columns={"surprise": surprise[None].numpy()},
                )  # fmt: skip
            a.commit()
            # Before each round what is held has faded.
            kept = [(id_, 0.5 * worth) for id_, worth in kept]
            kept += list(enumerate(surprise.tolist(), start))
            free = sorted(kept[2:-3], key=lambda entry: (entry[1], entry[0]))
            gone = {id_ for id_, _ in free[: max(0, len(kept) - 12)]}
            kept = [entry for entry in kept if entry[0] not in gone]
            assert memory[0].find()[0].tolist() == [id_ for id_, _ in kept]


def test_memory_bank_forgets_what_is_not_recalled():
    parts = mx.recipes.memory_bank(capacity=6)
    bank = mx.Bank(key_dim=8, **parts.bank)
    rng = np.random.default_rng(0)
    held: dict[int, list] = {}  # by id: vector, strength, when it was written or last recalled
    for clock in range(40):
        vector, cue = rng.standard_normal((2, 1, 8)).astype(np.float32)
        if held:
            hits = bank.search(cue, 1)
            best = max(held, key=lambda i: float(held[i][0] @ cue[0]) / np.linalg.norm(held[i][0]))
            assert hits.ids.tolist() == [[best]]
            bank.touch(hits)
            held[best][1:] = [held[best][1] + 1, clock]
        bank.write(vector)
        if len(held) == 6:
            del held[min(held, key=lambda i: (np.exp(-(clock - held[i][2]) / held[i][1]), i))]
        held[clock] = [vector[0], 1.0, clock]
        assert bank.find()[0].tolist() == sorted(held)
    assert min(held) < 30


def test_parts_can_be_changed_one_by_one():
    parts = mx.recipes.camelot()
    other = dataclasses.replace(parts, bank={**parts.bank, "evict": "lru"})
    assert other.attach == parts.attach
    assert other.bank["evict"] == "lru"
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.bank = {}
