"""Columns of the caller's own, stored with entries and kept by everything that keeps entries; bias on logits."""

from __future__ import annotations

import numpy as np
import pytest

import mnemex as mx
from plain_bank import attention, scores

COLUMNS = {"prior": "float32", "page": "int64", "seen": "bool"}
RNG = np.random.default_rng(11)


def numbers(*shape: int) -> dict[str, np.ndarray]:
    return {
        "prior": RNG.standard_normal(shape, np.float32),
        "page": RNG.integers(-(2**62), 2**62, shape),
        "seen": RNG.random(shape) < 0.5,
    }


def filled(rows: int = 2, heads: int = 2, n: int = 700, **options) -> tuple[mx.Bank, dict[str, np.ndarray]]:
    bank = mx.Bank(rows=rows, heads=heads, key_dim=4, value_dim="key", columns=COLUMNS, **options)
    given = numbers(rows, n)
    bank.write(RNG.standard_normal((rows, heads, n, 4), np.float32), columns=given)
    return bank, given


def holds(bank: mx.Bank | mx.Snapshot, row: int, ids, given: dict[str, np.ndarray]) -> None:
    """Check that the row holds these ids, and that the columns have the given numbers there, bit for bit."""
    assert bank.find(rows=[row])[0].tolist() == list(ids)
    got = bank.gather(np.array([ids]), rows=[row], columns=tuple(COLUMNS))[2]
    for name, dtype in COLUMNS.items():
        assert got[name].dtype == np.dtype(dtype)
        assert got[name].shape == (1, len(ids))
        assert got[name].tobytes() == np.ascontiguousarray(given[name][np.array(ids, int)]).tobytes(), name


def test_columns_are_told_and_kept_by_everything_that_keeps_entries(tmp_path):
    bank, given = filled()
    assert bank.columns == COLUMNS == bank.snapshot().columns
    first, second = ({name: x[row] for name, x in given.items()} for row in range(2))
    bank.delete(np.arange(0, 700, 3), rows=[0])
    left = [i for i in range(700) if i % 3]
    for kept in (bank, bank.snapshot(), bank.copy()):
        holds(kept, 0, left, first)
        holds(kept, 1, range(700), second)
    bank.save(tmp_path / "a")
    opened = mx.open(tmp_path / "a")
    assert opened.columns == COLUMNS
    holds(opened, 0, left, first)
    frozen = bank.snapshot()
    bank.fork(2)
    bank.reorder([3, 0])
    holds(bank, 0, range(700), second)
    bank.truncate(600, rows=[0])
    bank.write(np.ones((1, 2, 2, 4), np.float32), rows=[0], columns={"page": [[7, 8]]})
    joined = {name: np.r_[x, np.zeros(2, x.dtype)] for name, x in second.items()}
    joined["page"][700:] = 7, 8
    holds(bank, 0, [*range(600), 700, 701], joined)
    holds(frozen, 1, range(700), second)
    bank.reset(rows=[0])
    bank.write(np.ones((1, 2, 1, 4), np.float32), rows=[0])
    holds(bank, 0, [702], {name: np.zeros(703, dtype) for name, dtype in COLUMNS.items()})
    holds(frozen, 0, left, first)


def test_evicted_entries_take_their_numbers_with_them():
    bank, given = filled(rows=1, heads=1, n=3000, capacity=100)
    holds(bank, 0, range(2900, 3000), {name: x[0] for name, x in given.items()})
    full = mx.Bank(key_dim=4, value_dim="key", columns=COLUMNS)
    full.write(np.ones((3000, 4), np.float32), columns={name: x[0] for name, x in given.items()})
    bare = mx.Bank(key_dim=4, value_dim="key")
    bare.write(np.ones((3000, 4), np.float32))
    pages = -(-3000 // 512)
    assert pages * 512 * 13 <= full.nbytes - bare.nbytes <= pages * 512 * 13 + 500
    bank.truncate(0)
    assert bank.nbytes < 5000


def test_copies_share_their_columns():
    bank, _ = filled(rows=1, n=5000)
    one = bank.nbytes
    bank.fork(8)
    assert bank.nbytes < 1.02 * one


@pytest.mark.parametrize("rolled_back", [False, True])
def test_tokens_that_are_given_nothing_have_zero_and_masked_ones_may_hold_anything(rolled_back):
    bank = mx.Bank(key_dim=1, columns=COLUMNS)
    key = np.ones((2, 1), np.float32)
    bank.stage(key)
    bank.stage(key, columns={"prior": np.array([np.nan, 0.5], np.float32)}, mask=[False, True])
    if rolled_back:
        with pytest.raises(mx.Error):
            bank.write(key, columns={"prior": [1, 2], "page": [1, 2, 3]})
    bank.stage(key, columns={"page": [5, -6], "seen": [False, True]})
    bank.commit()
    prior = np.array([0, 0, 0.5, 0, 0], np.float32)
    columns = {"prior": prior, "page": np.array([0, 0, 0, 5, -6]), "seen": np.arange(5) == 4}
    holds(bank, 0, range(5), columns)


def test_columns_take_lists_and_narrower_arrays_and_keep_every_bit():
    bank = mx.Bank(key_dim=1, columns=COLUMNS)
    odd = np.array([0x7FC01234, 0x80000000, 0xFF800000], np.uint32).view(np.float32)
    bank.write(np.ones((3, 1), np.float32), columns={"prior": odd, "page": np.array([1, 2, 3], np.uint8)})
    bank.write(np.ones((3, 1), np.float32), columns={"prior": np.array([0.1, 2, 3], np.float16), "seen": [True] * 3})
    bank.write(np.ones((2, 1), np.float32), columns={"prior": [0.1, 2]})
    prior = np.r_[odd, np.array([0.1, 2, 3], np.float16).astype(np.float32), np.float32([0.1, 2])]
    columns = {"prior": prior, "page": np.array([1, 2, 3, 0, 0, 0, 0, 0]), "seen": np.arange(8) // 3 == 1}
    holds(bank, 0, range(8), columns)


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"nobody": [1, 2]}, ValueError, "nobody.*'prior', 'page', 'seen'"),
        ({"prior": [1, 2, 3]}, ValueError, r"prior.*\[rows, T\]"),
        ({"prior": np.ones(2)}, TypeError, "prior.*float64.*astype"),
        ({"prior": np.ones(2, int)}, TypeError, "prior.*int64"),
        ({"prior": [1e300, 0]}, ValueError, "prior.*beyond float32"),
        ({"prior": ["a", "b"]}, TypeError, "prior"),
        ({"page": np.ones(2, np.float32)}, TypeError, "page.*float32"),
        ({"page": [0.5, 1]}, TypeError, "page"),
        ({"page": np.full(2, 2**63, np.uint64)}, ValueError, "page.*int64"),
        ({"seen": [0, 1]}, TypeError, "seen.*bool"),
        ([1, 2], TypeError, "columns"),
        ("prior", TypeError, "columns"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_nothing_is_taken(columns, error, says):
    bank = mx.Bank(key_dim=1, columns=COLUMNS)
    for write in (bank.stage, bank.write):
        with pytest.raises(mx.Error, match=says) as info:
            write(np.ones((2, 1), np.float32), columns=columns)
        assert isinstance(info.value, error)
    assert bank.commit().ids == []
    assert len(bank) == 0


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"": "float32"}, ValueError, "name"),
        ({"label": "int64"}, ValueError, "label.*already"),
        ({"key": "int64"}, ValueError, "key.*already"),
        ({"prior": "float64"}, ValueError, "float64.*float32, int64, bool"),
        ({"prior": "f4"}, ValueError, "f4"),
        ({"prior": 3}, TypeError, "prior"),
        ({3: "int64"}, TypeError, "3"),
        (["prior"], TypeError, "columns"),
        ({f"c{i}": "bool" for i in range(65)}, ValueError, "64"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, error, says):
    with pytest.raises(mx.Error, match=says) as info:
        mx.Bank(key_dim=1, columns=columns)
    assert isinstance(info.value, error)


def test_types_may_be_numpys():
    assert mx.Bank(key_dim=1, columns={"a": np.float32, "b": int, "c": bool}).columns == {
        "a": "float32",
        "b": "int64",
        "c": "bool",
    }


def test_gather_gives_columns_in_the_shape_of_hits_with_padding():
    bank, given = filled(rows=3, heads=2, n=5)
    bank.delete([0], rows=[2])
    hits = bank.search(np.ones((2, 4, 3, 4), np.float32), 6, rows=[2, 0])
    names = ["label", "id", "position", "prior", "page", "seen"]
    keys, values, columns = bank.gather(hits, columns=names)
    assert list(columns) == names
    assert keys.shape == values.shape == (*hits.ids.shape, 4)
    for at, row in enumerate([2, 0]):
        ids, valid = hits.ids[at], hits.valid[at]
        assert (columns["id"][at] == ids).all()
        assert (columns["position"][at] == ids).all()
        assert (columns["label"][at] == -1).all()
        for name in COLUMNS:
            assert (columns[name][at][valid] == given[name][row][ids[valid]]).all()
            assert (columns[name][at][~valid] == 0).all()
    with pytest.raises(mx.Error, match=r"nobody.*position, prior"):
        bank.gather(hits, columns=["nobody"])
    with pytest.raises(mx.Error, match="list of names"):
        bank.gather(hits, columns="prior")
    with pytest.raises(mx.IdError):
        bank.gather(np.array([[0], [0], [0]]), columns=["prior"])


# ---------------------------------------------------------------------------------------------------------- bias


def attended(n: int = 600) -> tuple[mx.Bank, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    keys, values = RNG.standard_normal((2, n, 8), np.float32)
    prior = RNG.standard_normal(n, np.float32) * 2
    bank = mx.Bank(key_dim=8, value_dim=8, columns={"prior": "float32", "page": "int64", "seen": "bool"})
    bank.write(keys, values, columns={"prior": prior})
    return bank, keys, values, prior, RNG.standard_normal((7, 8), np.float32)


@pytest.mark.parametrize("k", [None, 5, 600])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_a_column_is_added_to_logits_after_the_softcap(k, softcap):
    bank, keys, values, prior, queries = attended()
    prior[::5] = -np.inf
    bank.write(keys, values, columns={"prior": prior})
    bank.truncate(1200)
    bank.delete(np.arange(600))
    part = bank.attend(queries, k, softcap=softcap, bias="prior", hits=True, where=("id", "!=", 603))
    dense = bank.attend(queries, k, softcap=softcap, bias="prior", where=("id", "!=", 603))
    for t in range(7):
        s = scores(keys, queries[t : t + 1], "dot")[0].astype(np.float64)
        seen = np.delete(np.arange(600), 3)
        taken = seen[np.lexsort((seen, -s[seen]))][:k]
        z = s[taken] * 8**-0.5
        z = (z if softcap is None else softcap * np.tanh(z / softcap)) + prior[taken]
        out, lse = attention(z, values[taken])
        for got in (part, dense):
            np.testing.assert_allclose(got.out[t], out, atol=2e-5)
            np.testing.assert_allclose(got.lse[t], lse, atol=2e-5)
        assert part.hits.ids[t][: len(taken)].tolist() == (taken + 600).tolist()
        np.testing.assert_allclose(part.mass[t][: len(taken)], np.exp(z - lse), atol=2e-5)


def test_a_number_per_head_moves_the_log_sum_exp_alone_and_minus_infinity_takes_all():
    bank = mx.Bank(rows=2, heads=2, key_dim=4, value_dim=3)
    bank.write(
        RNG.standard_normal((2, 2, 9, 4), np.float32), RNG.standard_normal((2, 2, 9, 3), np.float32), rows=[0, 1]
    )
    queries = RNG.standard_normal((2, 4, 3, 4), np.float32)
    bias = np.array([0, -np.inf, 2.5, -40], np.float32)
    for k in (None, 3):
        plain, moved = bank.attend(queries, k, hits=True), bank.attend(queries, k, bias=bias, hits=True)
        assert moved.hits.ids.tobytes() == plain.hits.ids.tobytes()
        np.testing.assert_array_equal(moved.lse, plain.lse + bias[None, :, None])
        kept = [0, 2, 3]
        assert moved.out[:, kept].tobytes() == plain.out[:, kept].tobytes()
        assert moved.mass[:, kept].tobytes() == plain.mass[:, kept].tobytes()
        assert not moved.out[:, 1].any()
        assert not moved.mass[:, 1].any()
    empty = mx.Bank(heads=2, key_dim=4, value_dim=3).attend(queries, None, bias=bias)
    assert np.isneginf(empty.lse).all()
    assert not empty.out.any()


def test_entries_that_all_have_minus_infinity_are_like_none():
    bank = mx.Bank(key_dim=8, value_dim=8, columns={"prior": "float32"})
    bank.write(*RNG.standard_normal((2, 5, 8), np.float32), columns={"prior": [-np.inf] * 5})
    for k in (None, 3):
        part = bank.attend(np.ones((2, 8), np.float32), k, bias="prior", hits=True)
        assert np.isneginf(part.lse).all()
        assert not part.out.any()
        assert not part.mass.any()


def test_bits_do_not_depend_on_threads_or_a_save(tmp_path):
    bank, *_, queries = attended(20_000)
    bank.delete(np.arange(0, 20_000, 7))
    bank.save(tmp_path / "a")
    for k in (None, 40):
        parts = [bank.attend(queries, k, bias="prior", threads=t) for t in (1, 2, 3)]
        parts.append(mx.open(tmp_path / "a").attend(queries, k, bias="prior"))
        assert len({(part.out.tobytes(), part.lse.tobytes()) for part in parts}) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_no_bias_are_refused_where_they_would_count(bad):
    bank, _, _, prior, queries = attended()
    prior[100] = bad
    keys, values = RNG.standard_normal((2, 600, 8), np.float32)
    bank.reset()
    bank.write(keys, values, columns={"prior": prior})
    for k in (None, 600):
        with pytest.raises(mx.NonFinite, match=r"bias.*prior.*700"):
            bank.attend(queries, k, bias="prior")
        bank.attend(queries, k, bias="prior", where=("id", "!=", 700))
        assert np.isnan(bank.attend(queries, k, bias="prior", nonfinite="keep").lse).all()
    bank.attend(queries, None, bias="prior", before=np.full(7, 700))
    with pytest.raises(mx.NonFinite, match="bias"):
        bank.attend(queries, None, bias=[bad])
    bank.delete([700])
    assert np.isfinite(bank.attend(queries, None, bias="prior").lse).all()


@pytest.mark.parametrize(
    ("bias", "error", "says"),
    [
        ("nobody", ValueError, "bias.*nobody.*prior"),
        ("page", TypeError, "bias.*page.*int64.*float32"),
        ("seen", TypeError, "bias.*seen.*bool"),
        ("position", TypeError, "bias.*position.*int64"),
        ([1.0, 2.0], ValueError, "bias.*2 numbers for 1 query"),
        (np.ones((1, 1), np.float32), TypeError, "bias"),
        (1.5, TypeError, "bias"),
        ([True], TypeError, "bias"),
        (np.array([1e300]), ValueError, "bias"),
    ],
)
def test_a_bias_that_cannot_be_is_refused(bias, error, says):
    bank, *_, queries = attended(5)
    for read in (bank, bank.snapshot()):
        for k in (None, 2):
            with pytest.raises(mx.Error, match=says) as info:
                read.attend(queries, k, bias=bias)
            assert isinstance(info.value, error)
