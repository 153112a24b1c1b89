"""Recipes of decoders, end to end on a small random Llama, against the papers' definitions written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import hf_plain  # noqa: E402
import mnemex as mx  # noqa: E402
import plain_adapters as plain  # noqa: E402
from hf_models import gap, make, tokens  # noqa: E402
from plain_consolidate import Lane  # noqa: E402

HEADS, LAYERS = 4, 2


def memory_for(model, parts):
    return mx.Memory.for_model(model, **parts.bank)


class Slots:
    """CAMELoT: all tokens of a segment find their nearest slots, attend, and are consolidated."""

    def __init__(self, parts, place):
        self.parts, self.place, self.lanes, self.version = parts, place, {}, 0

    def __call__(self, layer, q, k, v, turn):
        far = [k.new_full((*k.shape[:3], 1, k.shape[-1]), torch.nan) for _ in range(2)]
        for b, h in torch.cartesian_prod(*map(torch.arange, k.shape[:2])).tolist():
            lane = self.lanes.setdefault((layer, b, h), Lane())
            stored = list(lane.entries.values())
            if stored:
                keys = torch.stack([torch.from_numpy(x.key) for x in stored])
                best = torch.stack([plain.cosine(keys, key).argmax() for key in k[b, h]])
                far[0][b, h, :, 0] = keys[best]
                far[1][b, h, :, 0] = torch.stack([torch.from_numpy(x.value) for x in stored])[best]
        far_q = turn(q) if self.place == "start" else q
        out = plain.prepended(turn(q), turn(k), v, far_q, *far, hf_plain.causal(q.shape[2]), q.shape[-1] ** -0.5)
        for (at, b, h), lane in self.lanes.items():
            if at == layer:
                new = {self.version * 100 + t: (k[b, h, t].numpy(), v[b, h, t].numpy()) for t in range(k.shape[2])}
                how = self.parts.bank
                lane.write(how["write"], how["evict"], how["capacity"], new, self.version)
        return out


@pytest.mark.parametrize("place", ["start", "none"])
@torch.no_grad()
def test_camelot_reads_augments_and_writes_segment_by_segment(place):
    model, text = make("llama"), tokens(2, 45)
    parts = mx.recipes.camelot(capacity=14, threshold=0.8, positions=place)
    memory, slots = memory_for(model, parts), Slots(parts, place)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        for segment in text.split(9, 1):
            slots.version += 1
            want = hf_plain.llama(model, segment, slots)
            assert gap(model(segment, use_cache=False).logits, want) < 2e-5
            a.commit()
    merged = 0
    for (layer, b, h), lane in slots.lanes.items():
        assert memory[layer].lengths[b, h] == len(lane.entries) <= 14
        merged += sum(x.count > 1 for x in lane.entries.values())
    assert merged > 0, "some token joined a slot"
    assert gap(want, hf_plain.llama(model, segment, hf_plain.alone)) > 1e-2


@torch.no_grad()
def test_camelot_ingests_as_it_reads_segments():
    model, text = make("llama"), tokens(1, 36)
    parts = mx.recipes.camelot(capacity=14, threshold=0.8)
    memory, twin = memory_for(model, parts), memory_for(model, parts)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        a.ingest(text, chunk=9)
    with mx.hf.attach(model, twin, **parts.attach) as a:
        for segment in text.split(9, 1):
            model(segment, use_cache=False)
            a.commit()
    for layer in memory.layers:
        query = np.ones((1, memory[layer].heads, 1, memory[layer].key_dim), np.float32)
        ids, others = (bank.search(query, 14).ids for bank in (memory[layer], twin[layer]))
        assert ids.tolist() == others.tolist()


@torch.no_grad()
def test_memorizing_transformer_gates_two_softmaxes():
    model, text = make("llama"), tokens(2, 40)
    parts = mx.recipes.memorizing_transformer(HEADS, layer=1, capacity=16, k=3)
    gate = parts.attach["merge"]
    assert gate.weight.tolist() == [0.0] * HEADS
    gate.weight.copy_(torch.randn(HEADS))
    attention = hf_plain.EachQuery(
        lambda q, _: q, lambda keys, q: (keys @ q).topk(min(3, len(keys))).indices, gate.weight.sigmoid()
    )
    memory = memory_for(model, parts)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        for segment in text.split(8, 1):
            seen = {}

            def attend(layer, q, k, v, turn, seen=seen):
                seen[layer] = k, v
                return attention(layer, q, k, v, turn)

            want = hf_plain.llama(model, segment, attend)
            assert gap(model(segment, use_cache=False).logits, want) < 2e-5
            a.commit()
            attention.append(1, *seen[1])
            attention.entries = {at: tuple(x[-16:] for x in pair) for at, pair in attention.entries.items()}
    assert list(memory.layers) == [1]
    assert memory[1].lengths.tolist() == [[16, 16]] * 2


@pytest.mark.parametrize("threshold", [None, 0.25])
@torch.no_grad()
def test_extended_mind_chooses_by_cosine_and_says_where_it_read(threshold):
    model, text, prompt = make("llama"), tokens(1, 30), tokens(1, 7, seed=3)
    parts = mx.recipes.extended_mind(k=4, threshold=threshold)

    def choose(keys, q):
        alike = plain.cosine(keys, q)
        best = alike.topk(min(4, len(keys))).indices
        return best if threshold is None else best[alike[best] >= threshold]

    attention = hf_plain.EachQuery(lambda _, turned: turned, choose)
    memory = memory_for(model, parts)
    with mx.hf.attach(model, memory, **parts.attach) as a:
        seen = {}

        def attend(layer, q, k, v, turn):
            seen[layer] = k, v
            return attention(layer, q, k, v, turn)

        for chunk in text.split(10, 1):
            hf_plain.llama(model, chunk, attend)
            for layer, pair in seen.items():
                attention.append(layer, *pair)
        a.ingest(text, chunk=10, name="notes")
        want = hf_plain.llama(model, prompt, attention)
        assert gap(model(prompt, use_cache=False).logits, want) < 2e-5
        cited = a.citations()
        assert cited
        assert {c.source for c in cited} == {"notes"}


class Recent(hf_plain.EachQuery):
    """One token after another; what leaves the window goes to a memory that lets the least recently read go."""

    def __init__(self, window, capacity, k, policy):
        super().__init__(None, None)
        self.window, self.capacity, self.k, self.policy = window, capacity, k, policy
        self.near, self.far, self.step = {}, {}, 0

    def __call__(self, layer, q, k, v, turn):
        q, k = turn(q), turn(k)
        out, group = torch.zeros(*q.shape[:3], v.shape[-1]), q.shape[1] // k.shape[1]
        for h in range(q.shape[1]):
            lane, scale = (layer, h // group), q.shape[-1] ** -0.5
            near, far = self.near.setdefault(lane, []), self.far.setdefault(lane, [])
            if h % group == 0:
                near.append((k[0, h // group, 0], v[0, h // group, 0]))
            best = sorted(far, key=lambda e: (-float(e["key"] @ q[0, h, 0]), e["id"]))[: self.k]
            keys, values = zip(*[(e["key"], e["value"]) for e in best], *near, strict=True)
            weights = (torch.stack(keys) @ q[0, h, 0] * scale).softmax(0)
            out[0, h, 0] = weights @ torch.stack(values)
            for e, weight in zip(best, weights, strict=False):
                e["seen"], e["mass"] = self.step, e["mass"] + float(weight)
        return out

    def settle(self):
        for lane, near in self.near.items():
            far = self.far[lane]
            while len(near) > self.window - 1:
                key, value = near.pop(0)
                far.append({"key": key, "value": value, "id": self.step, "seen": self.step, "mass": 0.0})
            while len(far) > self.capacity:
                worth = "seen" if self.policy == "lra" else "mass"
                far.pop(min(range(len(far)), key=lambda i: (far[i][worth], far[i]["id"])))


@pytest.mark.parametrize("policy", ["lra", "lfa"])
@torch.no_grad()
def test_attendre_keeps_what_is_attended_to(policy):
    model, text = make("llama"), tokens(1, 40)
    parts = mx.recipes.attendre(policy=policy, capacity=9, k=3, window=5)
    memory, plainly = memory_for(model, parts), Recent(5, 9, 3, policy)
    fifo = memory_for(model, dataclasses.replace(parts, bank={**parts.bank, "evict": "fifo"}))
    with mx.hf.attach(model, memory, **parts.attach) as a:
        cache = a.cache(**parts.cache)
        for at, token in enumerate(text.split(1, 1)):
            plainly.step += 1
            want = hf_plain.llama(model, token, plainly, start=at)
            plainly.settle()
            got = model(token, past_key_values=cache, use_cache=True).logits
            assert gap(got, want) < 5e-5, at
    with mx.hf.attach(model, fifo, **parts.attach) as a:
        cache = a.cache(**parts.cache)
        for token in text.split(1, 1):
            other = model(token, past_key_values=cache, use_cache=True).logits
    assert gap(other, got) > 1e-3, "the policy matters"
    with pytest.raises(mx.ArgumentError, match="policy='lru'"):
        mx.recipes.attendre(policy="lru")


@torch.no_grad()
def test_sirllm_keeps_sinks_and_surprises():
    model = make("llama")
    parts = mx.recipes.sirllm(capacity=12, sinks=2, recent=1, decay=0.5)
    memory, kept, held, at = memory_for(model, parts), {}, [], 0
    attention = hf_plain.EachQuery(lambda _, turned: turned, lambda keys, _: torch.arange(len(keys)))
    with mx.hf.attach(model, memory, **parts.attach):
        for turn_number in range(4):
            text, n, round_ = tokens(1, 8, seed=turn_number), 8, {}

            def attend(layer, q, k, v, turn, round_=round_):
                round_[layer] = turn(k), v
                return attention(layer, q, k, v, turn)

            want = hf_plain.llama(model, text, attend, start=at)
            positions = at + torch.arange(n)[None]
            run = model(text, position_ids=positions, use_cache=True)
            assert gap(run.logits, want) < 2e-5
            surprise = -run.logits[0, :-1].log_softmax(-1).gather(1, text[0, 1:, None])[:, 0]
            surprise = torch.cat([surprise.max()[None], surprise])[None]
            for layer in memory.layers:
                cached = run.past_key_values.layers[layer]
                memory.stage(
                    layer, cached.keys, cached.values, positions=positions.numpy(), columns={"surprise": surprise}
                )
            memory.commit()
            kept = {i: s * 0.5 for i, s in kept.items()} | {at + i: float(s) for i, s in enumerate(surprise[0])}
            free = sorted(kept)[2:-1]
            for gone in sorted(free, key=lambda i: (kept[i], i))[: max(0, len(kept) - 12)]:
                del kept[gone]
            assert memory[0].find()[0].tolist() == sorted(kept) == memory[1].find()[0].tolist()
            for layer, pair in round_.items():
                attention.append(layer, *pair)
            held = [*held, *range(at, at + n)]
            stay = [place for place, i in enumerate(held) if i in kept]
            attention.entries = {lane: tuple(x[stay] for x in pair) for lane, pair in attention.entries.items()}
            held, at = sorted(kept), at + n
