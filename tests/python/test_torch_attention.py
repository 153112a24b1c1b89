"""mnemex.torch.attention against dense attention in float64, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from attention_setting import (  # noqa: E402
    DIM,
    ENTRIES,
    HEADS,
    KV_HEADS,
    N_KEYS,
    N_QUERIES,
    ROWS,
    Setting,
    close,
    gauss,
    same_gradients,
)
from mnemex.torch import local, retrieved  # noqa: E402
from mnemex.torch.joined import Reading, joined_attention  # noqa: E402
from mnemex.torch.local import Scoring, prepare  # noqa: E402

CASES = {
    "plain": {},
    "causal": {"causal": True},
    "softcap": {"softcap": 1.5},
    "softcap, causal": {"softcap": 1.5, "causal": True},
    "sink": {"sink": gauss(HEADS, seed=9)},
    "sink and softcap": {"sink": gauss(HEADS, seed=9), "softcap": 1.5},
    "boolean mask": {"mask": gauss(ROWS, 1, N_QUERIES, N_KEYS, seed=10) < 0.5},
    "additive mask": {"mask": gauss(ROWS, HEADS, N_QUERIES, N_KEYS, seed=11)},
    "two-axis mask": {"mask": gauss(N_QUERIES, N_KEYS, seed=12) < 0.5},
    "scale": {"scale": 0.7},
}


@pytest.mark.parametrize("k", [None, ENTRIES, 1000])
@pytest.mark.parametrize("case", CASES)
def test_point_12_output_and_gradients_equal_dense_attention(case, k):
    s = Setting()
    options = CASES[case]
    sink = options.get("sink")
    scoring = Scoring(options.get("scale", DIM**-0.5), options.get("softcap"), options.get("causal", False))
    mine, theirs = s.inputs(), s.inputs()
    sinks = [None, None] if sink is None else [sink.clone().requires_grad_(), sink.clone().requires_grad_()]
    mask = prepare(options.get("mask"), torch.float32)
    out = joined_attention(*mine, mask, scoring, Reading(s.bank, k), sink=sinks[0])
    want = s.dense(*theirs, **{**options, "sink": sinks[1]})
    close(out, want)
    g = gauss(*out.shape, seed=20)
    (out * g).sum().backward()
    (want * g).sum().backward()
    same_gradients(mine, theirs)
    if sink is not None:
        same_gradients(sinks[:1], sinks[1:])
    with torch.no_grad():
        close(joined_attention(*mine, mask, scoring, Reading(s.bank, k), sink=sinks[0]), want)


def test_a_learned_mask_gets_its_gradient():
    s = Setting()
    for shape in [(ROWS, HEADS, N_QUERIES, N_KEYS), (1, HEADS, 1, N_KEYS), (N_QUERIES, N_KEYS)]:
        mine, theirs = (gauss(*shape, seed=30).requires_grad_() for _ in range(2))
        mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=None, attn_mask=mine).square().sum().backward()
        s.dense(s.q, s.k, s.v, mask=theirs).square().sum().backward()
        same_gradients([mine], [theirs])


def test_dropout_falls_on_local_weights_only_and_has_the_right_gradient():
    s = Setting()
    scoring = Scoring(DIM**-0.5, dropout=0.4)
    mine, theirs = s.inputs(), s.inputs()
    torch.manual_seed(7)
    out = joined_attention(*mine, None, scoring, Reading(s.bank, None))
    torch.manual_seed(7)
    kept = torch.nn.functional.dropout(torch.ones(ROWS, HEADS, N_QUERIES, N_KEYS), 0.4)
    want = s.dense(*theirs, kept=kept.double())
    close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    same_gradients(mine, theirs)


@pytest.mark.parametrize(("rows", "n_queries", "n_keys"), [(2, 5, 0), (2, 0, 6), (0, 5, 6), (2, 1, 1), (2, 0, 0)])
@pytest.mark.parametrize("gradients", [False, True])
def test_point_18_sizes_of_zero_and_one_are_fine(rows, n_queries, n_keys, gradients):
    s = Setting(n_queries=n_queries, n_keys=n_keys)
    q, k, v = (x[:rows].clone().requires_grad_(gradients) for x in (s.q, s.k, s.v))
    bank = s.bank if rows else mx.Bank(heads=KV_HEADS, key_dim=DIM, value_dim=DIM)
    out = mx.torch.attention(q, k, v, memory=bank, top_k=64)
    assert out.shape == (rows, HEADS, n_queries, DIM)
    if rows:
        if n_queries:
            close(out, s.dense(s.q, s.k, s.v))
        if gradients:
            out.sum().backward()
            assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in (q, k, v))


def test_neither_side_has_anything_to_attend_to():
    s = Setting(entries=0)
    mask = torch.ones(ROWS, 1, N_QUERIES, N_KEYS, dtype=torch.bool)
    mask[0, 0, 2] = False
    q, k, v = s.inputs()
    out = mx.torch.attention(q, k, v, memory=s.bank, top_k=4, attn_mask=mask)
    assert (out[0, :, 2] == 0).all()
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.parametrize("value_dim", [DIM, 12])
def test_gradients_through_the_best_entries_in_stretches(monkeypatch, value_dim):
    s = Setting(value_dim=value_dim)
    k = 3
    ids = torch.from_numpy(np.asarray(s.bank.search(s.q, k).ids))
    picked = torch.zeros(ROWS, HEADS, N_QUERIES, ENTRIES, dtype=torch.bool).scatter_(-1, ids, True)
    mine, theirs = s.inputs(), s.inputs()
    keys, values = (x.double().repeat_interleave(2, 1) for x in (s.keys, s.values))
    q, lk, lv = theirs
    far = (q.double() @ keys.transpose(-1, -2) * DIM**-0.5).masked_fill(~picked, -torch.inf)
    near = q.double() @ lk.double().repeat_interleave(2, 1).transpose(-1, -2) * DIM**-0.5
    weights = torch.softmax(torch.cat([far, near], -1), -1)
    want = weights[..., :ENTRIES] @ values + weights[..., ENTRIES:] @ lv.double().repeat_interleave(2, 1)
    monkeypatch.setattr(retrieved, "GATHER_BYTES", 1)
    out = mx.torch.attention(*mine, memory=s.bank, top_k=k)
    close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    same_gradients(mine, theirs)


@pytest.mark.parametrize("bound", ["GATHER_BYTES", "LOGIT_BYTES"])
def test_every_entry_in_stretches(bound, monkeypatch):
    s = Setting()
    monkeypatch.setattr(retrieved, bound, 1)
    mine, theirs = s.inputs(), s.inputs()
    mx.torch.attention(*mine, memory=s.bank, top_k=None).square().sum().backward()
    s.dense(*theirs).square().sum().backward()
    same_gradients(mine, theirs)


def test_no_scores_are_sorted_where_every_entry_is_read(monkeypatch):
    s = Setting()
    monkeypatch.setattr(mx.Snapshot, "search", None)
    for x in (s.inputs(), [x.detach().double().requires_grad_() for x in s.inputs()]):
        mx.torch.attention(*x, memory=s.bank.snapshot(), top_k=None).square().sum().backward()


def test_lanes_of_different_length():
    s = Setting(entries=0)
    keys, values = gauss(ROWS, KV_HEADS, 9, DIM, seed=40), gauss(ROWS, KV_HEADS, 9, DIM, seed=41)
    mask = np.ones((ROWS, 9), bool)
    mask[1, 3:] = False
    s.bank.write(keys, values, mask=mask)
    for k in (None, 9):
        mine = s.inputs()
        out = mx.torch.attention(*mine, memory=s.bank, top_k=k)
        out.square().sum().backward()
        for row, n in ((0, 9), (1, 3)):
            alone = Setting(entries=0)
            alone.keys, alone.values = keys[row : row + 1, :, :n], values[row : row + 1, :, :n]
            theirs = [x[row : row + 1].clone().requires_grad_() for x in (s.q, s.k, s.v)]
            want = alone.dense(*theirs)
            close(out[row : row + 1], want)
            want.square().sum().backward()
            for a, b in zip(mine, theirs, strict=True):
                close(a.grad[row : row + 1], b.grad, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_memory_of_one_row_serves_every_row(dtype):
    s = Setting(rows=1)
    q = gauss(3, HEADS, N_QUERIES, DIM, seed=50).to(dtype).requires_grad_()
    k, v = (gauss(3, KV_HEADS, N_KEYS, DIM, seed=seed).to(dtype) for seed in (51, 52))
    for top_k in (None, 64):
        q.grad = None
        out = mx.torch.attention(q, k, v, memory=s.bank, top_k=top_k)
        out.square().sum().backward()
        theirs = q.detach().clone().requires_grad_()
        s.keys, s.values = s.keys[:1].expand(3, -1, -1, -1), s.values[:1].expand(3, -1, -1, -1)
        want = s.dense(theirs, k, v)
        close(out, want)
        want.square().sum().backward()
        same_gradients([q], [theirs])


def test_a_snapshot_serves_as_memory_and_stays_what_it_was():
    s = Setting()
    snapshot = s.bank.snapshot()
    s.bank.write(gauss(ROWS, KV_HEADS, 4, DIM), gauss(ROWS, KV_HEADS, 4, DIM))
    close(mx.torch.attention(s.q, s.k, s.v, memory=snapshot, top_k=None), s.dense(s.q, s.k, s.v))


def test_the_backward_pass_reads_the_version_of_its_forward_pass():
    s = Setting()
    for k in (None, 64):
        mine, theirs = s.inputs(), s.inputs()
        out = mx.torch.attention(*mine, memory=s.bank, top_k=k)
        want = s.dense(*theirs)
        s.bank.write(torch.ones(ROWS, KV_HEADS, 3, DIM), torch.ones(ROWS, KV_HEADS, 3, DIM))
        s.bank.truncate(int(s.bank.lengths.max()) - 5)
        out.sum().backward()
        want.sum().backward()
        same_gradients(mine, theirs)
        s = Setting()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_under_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    s = Setting()
    snapshot = s.bank.snapshot()
    mine, theirs = s.inputs(), s.inputs()
    out = checkpoint(
        lambda *x: mx.torch.attention(*x, memory=snapshot, top_k=64, is_causal=True), *mine, use_reentrant=reentrant
    )
    s.bank.write(torch.ones(ROWS, KV_HEADS, 3, DIM), torch.ones(ROWS, KV_HEADS, 3, DIM))
    out.square().sum().backward()
    s.dense(*theirs, causal=True).square().sum().backward()
    same_gradients(mine, theirs)


def test_a_bad_query_is_nan_in_its_own_gradient_alone():
    s = Setting()
    mine, theirs = s.inputs(), s.inputs()
    bad = mine[0].detach().clone()
    bad[1, 2, 3, 0] = torch.inf
    bad.requires_grad_()
    out = mx.torch.attention(bad, mine[1], mine[2], memory=s.bank, top_k=64)
    assert torch.isnan(out[1, 2, 3]).all()
    assert int(torch.isnan(out).sum()) == DIM
    out.sum().backward()
    s.dense(*theirs).sum().backward()
    fine = torch.ones(ROWS, HEADS, N_QUERIES, dtype=torch.bool)
    fine[1, 2, 3] = False
    close(bad.grad[fine], theirs[0].grad[fine], 2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-5)])
def test_point_17_other_dtypes_in_and_out(dtype, tolerance):
    s = Setting()
    mine = [x.to(dtype).requires_grad_() for x in (s.q, s.k, s.v)]
    theirs = [x.detach().clone().double().requires_grad_() for x in mine]
    for k in (None, 64):
        for x in (*mine, *theirs):
            x.grad = None
        out = mx.torch.attention(*mine, memory=s.bank, top_k=k, is_causal=True)
        assert out.dtype == dtype
        want = s.dense(*theirs, causal=True)
        close(out, want, tolerance)
        out.sum().backward()
        want.sum().backward()
        same_gradients(mine, theirs, 2 * tolerance)
        assert all(x.grad.dtype == dtype for x in mine)
    queries = mine[0].detach().to(torch.float32 if dtype == torch.float64 else dtype)
    assert s.bank.attend(queries, 4).lse.dtype == np.float32
    near = local.attend(*(x.detach() for x in mine), None, Scoring(DIM**-0.5))
    assert near.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    q, k = (x.detach().double() for x in mine[:2])
    want = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * DIM**-0.5).logsumexp(-1)
    assert (near.lse - want).abs().max() <= 1e-5  # half precision would be a thousand times as far off


def test_point_17_autocast_brings_mixed_dtypes_together():
    s = Setting()
    with torch.autocast("cpu", torch.bfloat16):
        out = mx.torch.attention(s.q, s.k, s.v.bfloat16(), memory=s.bank, top_k=64)
        capped = joined_attention(s.q, s.k, s.v, None, Scoring(0.3, 1.5), Reading(s.bank, None))
    assert out.dtype == torch.bfloat16
    close(out, s.dense(s.q, s.k, s.v), 2e-2)
    close(capped, s.dense(s.q, s.k, s.v, scale=0.3, softcap=1.5))


def test_the_local_log_sum_exp_is_that_of_the_softmax_and_dead_rows_have_none():
    s = Setting()
    mask = gauss(ROWS, 1, N_QUERIES, N_KEYS, seed=60) < 0.5
    mask[0, 0, 1] = False
    scores = s.q.double() @ s.k.double().repeat_interleave(2, 1).transpose(-1, -2) * DIM**-0.5
    want = scores.masked_fill(~mask, -torch.inf).logsumexp(-1)
    for scoring in (Scoring(DIM**-0.5), Scoring(DIM**-0.5, softcap=1e4)):
        got = local.attend(s.q, s.k, s.v, prepare(mask, torch.float32), scoring)
        assert torch.equal(got.lse == -torch.inf, want == -torch.inf)
        assert (got.lse - want).nan_to_num(0).abs().max() < 1e-5
        assert (got.out[0, :, 1] == 0).all()


def test_flash_and_dense_agree_forward_and_backward():
    s = Setting()
    mask = prepare(gauss(ROWS, 1, N_QUERIES, N_KEYS, seed=61) < 0.7, torch.float32)
    flash, dense = Scoring(0.3), Scoring(0.3, softcap=1e6)
    a, b = (local.attend(s.q, s.k, s.v, mask, x) for x in (flash, dense))
    close(a.out, b.out)
    close(a.lse, b.lse)
    g = gauss(*a.out.shape, seed=62)
    one, two = (
        local.backward(g, s.q, s.k, s.v, mask, x, out=y.out, lse=y.lse, kept=None) for x, y in ((flash, a), (dense, b))
    )
    for x, y in zip(one[:3], two[:3], strict=True):
        close(x, y)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"q": gauss(2, 4, 5)}, "q is"),
        ({"k": gauss(2, 2, 6, 9)}, "expected"),
        ({"v": gauss(2, 2, 7, 8)}, "expected"),
        ({"q": gauss(2, 3, 5, 8)}, "heads"),
        ({"q": gauss(2, 4, 5, 8).double()}, "dtype"),
        ({"q": torch.ones(2, 4, 5, 8, dtype=torch.long)}, "floating"),
        ({"q": gauss(3, 4, 5, 8), "k": gauss(3, 2, 6, 8), "v": gauss(3, 2, 6, 8)}, "rows"),
        ({"v": gauss(2, 2, 6, 9)}, "value_dim"),
        ({"attn_mask": torch.ones(5, 7, dtype=torch.bool)}, "attn_mask"),
        ({"attn_mask": torch.ones(5, 6, dtype=torch.bool), "is_causal": True}, "is_causal"),
        ({"merge": "sum"}, "merge"),
        ({"top_k": 0}, "k"),
    ],
)
def test_wrong_arguments_are_named(change, match):
    s = Setting()
    arguments = {"q": s.q, "k": s.k, "v": s.v, "memory": s.bank, "top_k": 4, **change}
    with pytest.raises(mx.Error, match=match):
        mx.torch.attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_thread_that_flushes_small_numbers_gets_the_same_bits(metric, threads):
    # Keys below float32's smallest normal number, 1.2e-38: flushed, they would all score 0.
    keys = 1e-40 * gauss(1, 2, 3000, 8, seed=70).numpy()
    queries = gauss(1, 2, 400, 8, seed=71).numpy()

    def answers():
        bank = mx.Bank(heads=2, key_dim=8, value_dim="key", metric=metric, threads=threads)
        bank.write(keys)
        found, read = bank.search(queries, 5), bank.attend(queries, None, scale=1e38)
        return [array.tobytes() for array in (found.scores, found.ids, read.out, read.lse)]

    plain = answers()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush small numbers to zero")
    try:
        flushed = answers()
    finally:
        torch.set_flush_denormal(False)
    assert flushed == plain


def test_second_derivatives_are_refused():
    memory = mx.Bank(key_dim=4, value_dim=4)
    memory.write(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))
    x = torch.ones(1, 1, 3, 4, requires_grad=True)
    loss = (mx.torch.attention(x, x, x, memory=memory, top_k=2) ** 2).sum()
    with pytest.raises(mx.Unsupported, match="create_graph"):
        torch.autograd.grad(loss, x, create_graph=True)
