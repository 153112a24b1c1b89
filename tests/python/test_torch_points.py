"""Conformance points of attention with a memory that no other file holds, each under its number.

The other points stand where their subject does: `pytest -k point_`.
"""

from __future__ import annotations

import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from attention_setting import (  # noqa: E402
    DIM,
    ENTRIES,
    HEADS,
    N_KEYS,
    N_QUERIES,
    ROWS,
    Setting,
    close,
    gauss,
    same_gradients,
)


def test_point_05_a_masked_or_future_token_changes_nothing():
    s = Setting(n_queries=N_KEYS)
    mask = torch.ones(ROWS, 1, N_KEYS, N_KEYS, dtype=torch.bool).tril()
    mask[1, ..., 4] = False  # a pad
    k, v = s.k.clone(), s.v.clone()
    k[1, :, 4], v[1, :, 4] = 99.0, -99.0
    k[0, :, 5], v[0, :, 5] = 99.0, -99.0  # the future of tokens 0 to 4
    for top_k in (None, 5):
        one, two = (
            mx.torch.attention(s.q, *x, memory=s.bank, top_k=top_k, attn_mask=mask) for x in ((s.k, s.v), (k, v))
        )
        assert torch.equal(one[1], two[1])
        assert torch.equal(one[0, :, :5], two[0, :, :5])
        assert not torch.equal(one[0, :, 5], two[0, :, 5])


def test_point_07_a_poisoned_row_leaves_the_bits_of_the_other():
    s, poisoned = Setting(), Setting(entries=0)
    keys, values = s.keys.clone(), s.values.clone()
    keys[1], values[1] = 1e6, -1e6
    poisoned.bank.write(keys, values)
    q = s.q.clone()
    q[1] = torch.nan
    for top_k in (None, 5):
        one = mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=top_k)
        two = mx.torch.attention(q, s.k, s.v, memory=poisoned.bank, top_k=top_k)
        assert torch.equal(one[0], two[0])
        assert torch.isnan(two[1]).all()


def test_point_11_parts_merge_in_any_order_and_grouping():
    n = 24
    q, keys, values = gauss(1, HEADS, N_QUERIES, DIM), gauss(1, HEADS, n, DIM, seed=1), gauss(1, HEADS, n, DIM, seed=2)
    for scale in (0.3, 2000.0):  # log-sum-exps up to 1e4
        parts = []
        for part in range(4):
            bank = mx.Bank(heads=HEADS, key_dim=DIM, value_dim=DIM)
            if part < 3:  # the fourth is empty
                span = slice(8 * part, 8 * part + 8)
                bank.write(keys[:, :, span], values[:, :, span])
            parts.append(bank.attend(q, None, scale=scale))
        logits = q.double() @ keys.double().transpose(-1, -2) * scale
        want, lse = logits.softmax(-1) @ values.double(), logits.logsumexp(-1)
        a, b, c, empty = ((torch.from_numpy(p.out), torch.from_numpy(p.lse)) for p in parts)
        for out, total in (
            mx.merge(*mx.merge(*a, *b), *mx.merge(*c, *empty)),
            mx.merge(*mx.merge(*mx.merge(*empty, *c), *b), *a),
            mx.merge(*b, *mx.merge(*a, *c)),
        ):
            limit = 1e-5 + 2.4e-7 * float(logits.abs().max())
            assert (torch.as_tensor(out).double() - want).abs().max() <= limit * want.abs().max()
            assert (torch.as_tensor(total).double() - lse).abs().max() <= limit * lse.abs().max().clamp(min=1)
        out, total = mx.merge(*empty, *empty)
        assert (torch.as_tensor(out) == 0).all()
        assert (torch.as_tensor(total) == -torch.inf).all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 1), (6, 3), (8, 1), (8, 2), (12, 3)])
@pytest.mark.parametrize("value_dim", [DIM, 5])
def test_point_13_groups_of_heads_and_values_of_another_width(heads, kv_heads, value_dim):
    q, k, v = gauss(2, heads, 3, DIM), gauss(2, kv_heads, 4, DIM, seed=1), gauss(2, kv_heads, 4, value_dim, seed=2)
    keys, values = gauss(2, kv_heads, 9, DIM, seed=3), gauss(2, kv_heads, 9, value_dim, seed=4)
    bank = mx.Bank(rows=2, heads=kv_heads, key_dim=DIM, value_dim=value_dim)
    bank.write(keys, values)
    both = [torch.cat(x, 2).double().repeat_interleave(heads // kv_heads, 1) for x in ((keys, k), (values, v))]
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), *both)
    for top_k in (None, 9):
        close(mx.torch.attention(q, k, v, memory=bank, top_k=top_k), want)


def test_point_18_strided_expanded_and_inference_tensors():
    s = Setting()
    want = s.dense(s.q, s.k, s.v)
    twisted = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (s.q, s.k, s.v)]
    wide = [torch.cat([x, x], -1)[..., :DIM] for x in (s.q, s.k, s.v)]
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (s.q, s.k, s.v)]
    theirs = s.inputs()
    s.dense(*theirs).square().sum().backward()
    for given in (twisted, wide, turned):
        mine = [x.detach().requires_grad_() for x in given]
        out = mx.torch.attention(*mine, memory=s.bank, top_k=64)
        close(out, want)
        out.square().sum().backward()
        same_gradients(mine, theirs)
    for mask in (gauss(N_QUERIES, 1, seed=9), gauss(ROWS, 1, 1, 1, seed=9), gauss(HEADS, 1, N_KEYS, seed=9)):
        close(
            mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=64, attn_mask=mask),
            s.dense(s.q, s.k, s.v, mask=mask),
        )
    one = [x[:1].expand(ROWS, -1, -1, -1) for x in (s.q, s.k, s.v)]
    close(mx.torch.attention(*one, memory=s.bank, top_k=64), s.dense(*one))
    with torch.inference_mode():
        close(mx.torch.attention(s.q * 1, s.k * 1, s.v * 1, memory=s.bank, top_k=64), want)


class Retrieved(torch.utils.data.Dataset):
    """A dataset whose worker processes search: a bank given as it is, or the path of a saved one."""

    def __init__(self, source, queries):
        self.source, self.queries = source, queries

    def __len__(self):
        return len(self.queries)

    def __getitem__(self, i):
        if not isinstance(self.source, mx.Bank):
            self.source = mx.open(self.source)
        return torch.from_numpy(self.source.search(self.queries[i], 9, threads=2).ids)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_point_22_workers_of_a_data_loader_search(method, tmp_path):
    bank, queries = mx.Bank(key_dim=32), gauss(6, 60, 32)
    bank.write(gauss(20_000, 32, seed=1))  # enough for the pool, which this process has and no worker can use
    want = [bank.search(x, 9, threads=2).ids for x in queries]
    bank.save(tmp_path / "bank")
    data = Retrieved(bank if method == "fork" else tmp_path / "bank", queries)
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120
    )
    assert [x.tolist() for x in loader] == [ids.tolist() for ids in want]


def test_point_29_what_was_given_may_be_freed_and_written_over_after_the_call():
    s = Setting(entries=0)
    keys, values = s.k.clone(), s.v.clone()
    s.bank.write(keys, values)
    want = mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=4)
    gone = [weakref.ref(x) for x in (keys, values)]
    keys.fill_(7.0)
    values.fill_(7.0)
    del keys, values
    assert [ref() for ref in gone] == [None, None]
    assert torch.equal(mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=4), want)
    found = s.bank.attend(s.q, 4)
    out = torch.from_numpy(found.out)
    del found
    before = out.clone()
    s.bank.reset()
    s.bank.write(torch.zeros_like(s.k), torch.zeros_like(s.v))
    assert torch.equal(out, before)


@pytest.mark.parametrize("k", [None, 4])
def test_point_29_read_only_producers_are_read_and_not_written(k):
    s = Setting()
    want = mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=k)
    found = s.bank.attend(s.q, k, before=np.full((ROWS, N_QUERIES), 9), where=np.arange(7))
    given = [x.numpy().copy() for x in (s.q, s.k, s.v)]
    side = [np.full((ROWS, N_QUERIES), 9), np.arange(7)]
    sums = [x.tobytes() for x in (*given, *side)]
    for x in (*given, *side):
        x.flags.writeable = False
    again = s.bank.attend(given[0], k, before=side[0], where=side[1])
    assert [x.tobytes() for x in again] == [x.tobytes() for x in found]
    s.bank.write(given[1], given[2])
    s.bank.truncate(ENTRIES)
    assert torch.equal(mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=k), want)
    assert [x.tobytes() for x in (*given, *side)] == sums
