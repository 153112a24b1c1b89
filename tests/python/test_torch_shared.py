"""Pairs that local tokens look up for each other (CAMELoT's augmentation), and entries chosen by cosine."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import mnemex as mx  # noqa: E402
import plain_adapters as plain  # noqa: E402

DIM, SCALE = 6, 6**-0.5
SCORES = {"cos": plain.cosine, "dot": plain.dot}


def setting(*, batch=2, kv=2, group=2, queries=5, keys=5, n=20, metric="dot", dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    q = torch.randn(batch, kv * group, queries, DIM, dtype=dtype)
    k, v = torch.randn(2, batch, kv, keys, DIM, dtype=dtype)
    stored = torch.randn(2, batch, kv, n, DIM)
    bank = mx.Bank(rows=batch, heads=kv, key_dim=DIM, value_dim=DIM, metric=metric)
    if n:
        bank.write(*stored)
    return q, k, v, stored, bank


def want(q, k, v, stored, seen, n, metric):
    far = plain.nearest(k.detach(), *stored, n, SCORES[metric])
    return plain.prepended(q, k, v, q, *far, seen, SCALE)


@settings(max_examples=40, deadline=None)
@given(
    metric=st.sampled_from(["dot", "cos"]), n=st.integers(1, 3), entries=st.integers(1, 12), kv=st.integers(1, 2),
    group=st.integers(1, 2), tokens=st.integers(1, 6), how=st.sampled_from(["causal", "all", "random"]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_pairs_are_prepended_as_the_definition_says(metric, n, entries, kv, group, tokens, how, seed):
    q, k, v, stored, bank = setting(
        kv=kv, group=group, queries=tokens, keys=tokens, n=entries, metric=metric, dtype=torch.float64, seed=seed
    )
    seen = torch.ones(tokens, tokens, dtype=torch.bool)
    seen = {"causal": seen.tril(), "all": seen, "random": torch.rand(2, tokens, tokens) < 0.5}[how]
    mask = {"attn_mask": seen[:, None]} if how == "random" else {"is_causal": how == "causal"}
    got = mx.torch.attention(q, k, v, memory=bank, top_k=mx.Shared(n), **mask)
    torch.testing.assert_close(got, want(q, k, v, stored, seen, n, metric), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("metric", ["dot", "cos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision_agrees(metric, dtype):
    q, k, v, stored, bank = setting(metric=metric)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    got = mx.torch.attention(q, k, v, memory=bank, top_k=mx.Shared(2), is_causal=True)
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    exact = want(*(x.double() for x in (q, k, v)), stored, seen, 2, metric)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=1e-2)


@pytest.mark.parametrize(("n", "masked"), [(1, False), (1, True), (2, False), (2, True)])
def test_gradients_pass_the_check_by_differences(n, masked):
    q, k, v, _, bank = setting(batch=1, queries=3, keys=3, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    how = {"attn_mask": torch.tensor([[True, False, False], [False, False, False], [True, True, True]])}
    how = how if masked else {"is_causal": True}
    assert torch.autograd.gradcheck(
        lambda *x: mx.torch.attention(*x, memory=bank, top_k=mx.Shared(n), **how), inputs, eps=1e-6
    )


@pytest.mark.parametrize("merge", [mx.torch.Bias, mx.torch.Gate])
def test_learned_merges_take_shared_pairs_too(merge):
    q, k, v, _, bank = setting(batch=1, queries=3, keys=3, dtype=torch.float64)
    learned = merge(4).double()

    def attend(weight, *x):
        return torch.func.functional_call(
            Through(learned, bank), {"merge.weight": weight}, x
        )  # fmt: skip

    inputs = [torch.randn(4, dtype=torch.float64, requires_grad=True), *(x.requires_grad_() for x in (q, k, v))]
    assert torch.autograd.gradcheck(attend, inputs)


class Through(torch.nn.Module):
    def __init__(self, merge, bank):
        super().__init__()
        self.merge, self.bank = merge, bank

    def forward(self, q, k, v):
        return mx.torch.attention(q, k, v, memory=self.bank, top_k=mx.Shared(1), is_causal=True, merge=self.merge)


def test_an_empty_memory_leaves_local_attention_and_one_of_merged_entries_reads():
    q, k, v, _, bank = setting(n=0)
    local = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(mx.torch.attention(q, k, v, memory=bank, top_k=mx.Shared(), is_causal=True), local)
    merged = mx.Bank(
        rows=2, heads=2, key_dim=DIM, value_dim=DIM, metric="cos", capacity=4, write=mx.Consolidate(threshold=0.5),
        evict=mx.OldestAge(),
    )  # fmt: skip
    for _ in range(3):
        merged.write(torch.randn(2, 2, 9, DIM), torch.randn(2, 2, 9, DIM))
    # Each head merged what it would: lanes of one row hold other ids.
    counts = torch.from_numpy(merged.lengths)
    assert counts.max() <= 4
    found = merged.search(k, 1)
    far = [torch.from_numpy(x).double() for x in merged.gather(found)]
    exact = plain.prepended(
        *(x.double() for x in (q, k, v)), q.double(), *far, torch.ones(5, 5, dtype=torch.bool).tril(), SCALE
    )
    got = mx.torch.attention(q, k, v, memory=merged, top_k=mx.Shared(), is_causal=True)
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=1e-5)


def test_a_bank_and_a_graph_refuse_shared_pairs():
    q, k, v, _, bank = setting()
    for call in (bank.search, bank.attend):
        with pytest.raises(mx.ArgumentError, match=r"Shared\(k=1\) shares entries among local tokens"):
            call(q.numpy(), mx.Shared())
    for wrong in (0, -1, 2.5, "1"):
        with pytest.raises(mx.Error, match="k="):
            mx.Shared(wrong)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no graph holds pairs"):
        torch.compile(fullgraph=True, backend="eager")(
            lambda *x: mx.torch.attention(*x, memory=bank, top_k=mx.Shared())
        )(q, k, v)


def by_cosine(q, k, v, stored, reader):
    """Local attention joined with the entries nearest by cosine, weighed by dot products."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    keys, values = stored.to(q)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        lane = h // 2
        alike = plain.cosine(keys[b, lane], q[b, h, i].detach())
        n = alike.numel() if reader is None else reader.k
        best = alike.topk(min(n, alike.numel())).indices
        if isinstance(reader, mx.Threshold):
            best = best[alike[best] >= reader.score]
        logits = torch.cat([k[b, lane], keys[b, lane, best]]) @ q[b, h, i] * SCALE
        out[b, h, i] = logits.softmax(0) @ torch.cat([v[b, lane], values[b, lane, best]])
    return out


@pytest.mark.parametrize("reader", [mx.TopK(4), mx.Threshold(0.3, 6), mx.Threshold(0.99, 3), None], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cosine_chooses_and_dot_products_weigh(reader, dtype):
    q, k, v, stored, bank = setting(metric="cos", dtype=dtype)
    stored[0] *= torch.rand(stored.shape[1:-1])[..., None] * 5  # lengths at which dot would choose others
    bank = mx.Bank(rows=2, heads=2, key_dim=DIM, value_dim=DIM, metric="cos")
    bank.write(*stored)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    got, exact = mx.torch.attention(q, k, v, memory=bank, top_k=reader), by_cosine(q, k, v, stored, reader)
    near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(got, exact, **near)
    weigh = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad((got * weigh).sum(), inputs),
        torch.autograd.grad((exact * weigh).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


def test_gradients_by_cosine_pass_the_check_by_differences():
    q, k, v, _, bank = setting(batch=1, queries=3, keys=3, metric="cos", dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: mx.torch.attention(*x, memory=bank, top_k=4), inputs)


def test_a_graph_chooses_by_cosine_too():
    q, k, v, _, bank = setting(metric="cos")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: mx.torch.attention(*x, memory=bank, top_k=4, is_causal=True), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(
        compiled(q, k, v), mx.torch.attention(q, k, v, memory=bank, top_k=4, is_causal=True), atol=1e-6, rtol=1e-6
    )
