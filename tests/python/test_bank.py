"""The facade: arrays as callers have them, words and numbers that are wrong, and what a new user tries first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import mnemex as mx
from plain_bank import attention, best, scores

RNG = np.random.default_rng(7)


def filled(n: int = 200, dim: int = 12, **options) -> tuple[mx.Bank, np.ndarray, np.ndarray]:
    keys, values = (RNG.standard_normal((n, d), np.float32) for d in (dim, 6))
    bank = mx.Bank(key_dim=dim, value_dim=6, **options)
    bank.write(keys, values)
    return bank, keys, values


KINDS = {
    "gaussian": lambda n, d: RNG.standard_normal((n, d)),
    "clustered": lambda n, d: RNG.standard_normal((5, d))[RNG.integers(0, 5, n)] + 1e-3 * RNG.standard_normal((n, d)),
    "half duplicates": lambda n, d: RNG.standard_normal((n, d))[RNG.integers(0, (n + 1) // 2, n)],
    "constant": lambda n, d: np.full((n, d), 0.3),
    "near ties": lambda n, d: 1 + RNG.integers(0, 4, (n, d)) * 2.0**-20,
    "huge and tiny": lambda n, d: RNG.standard_normal((n, d)) * 10.0 ** RNG.uniform(-18, 18, (n, 1)),
    "subnormal": lambda n, d: RNG.integers(1, 9, (n, d)) * 2.0**-140,
    "rising": lambda n, d: RNG.standard_normal((n, d)) + np.linspace(0, 9, n)[:, None],
}


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (65, 3), (900, 33), (300, 130)])
def test_search_gives_the_canonical_ids_and_bits(kind, metric, n, dim):
    keys, queries = KINDS[kind](n, dim).astype(np.float32), RNG.standard_normal((20, dim)).astype(np.float32)
    bank = mx.Bank(key_dim=dim, metric=metric)
    bank.write(keys)
    want = scores(keys, queries, metric)
    for k in (1, 32, n + 2):
        found, (wanted_scores, wanted_ids) = bank.search(queries, k), best(np.arange(n), want, k)
        np.testing.assert_array_equal(found.ids, wanted_ids)
        np.testing.assert_array_equal(found.scores.view(np.int32), wanted_scores.view(np.int32))


@pytest.mark.parametrize("isa", mx.build_info().isas)
def test_every_instruction_set_gives_the_same_bits(isa):
    code = """
import hashlib, numpy as np, mnemex as mx
rng, sha = np.random.default_rng(3), hashlib.sha256()
for n, d, dtype in ((3000, 64, "f4"), (700, 37, "f2"), (129, 5, "f4")):
    keys = rng.standard_normal((n, d)).astype(dtype); keys[n // 2:] = keys[: n - n // 2]
    for metric in ("dot", "cos", "l2"):
        bank = mx.Bank(key_dim=d, metric=metric); bank.write(keys)
        for k in (1, 40):
            for array in bank.search(rng.standard_normal((19, d)).astype("f4"), k): sha.update(array.tobytes())
print(mx.build_info().isa, sha.hexdigest())"""
    chosen = []
    for name in ("portable", isa):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "MNEMEX_ISA": name},
            capture_output=True,
            text=True,
            check=True,
        )
        chosen.append(done.stdout.split())
    assert [c[0] for c in chosen] == ["portable", isa]
    assert chosen[0][1] == chosen[1][1]


def test_an_unknown_instruction_set_is_refused_in_clear_words():
    code = "import mnemex as mx; mx.Bank(key_dim=2)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MNEMEX_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "MNEMEX_ISA=mmx" in done.stderr
    assert "portable" in done.stderr


@pytest.mark.parametrize("k", [3, None])
def test_attend_is_softmax_over_what_search_takes(k):
    bank, keys, values = filled()
    queries = RNG.standard_normal((9, 12), np.float32)
    for softcap in (None, 2.0):
        part = bank.attend(queries, k, softcap=softcap)
        for t, s in enumerate(scores(keys, queries, "dot")):
            ids = best(np.arange(len(keys)), s[None], k or len(keys))[1][0]
            z = s[ids].astype(np.float64) * 12**-0.5
            z = z if softcap is None else softcap * np.tanh(z / softcap)
            out, lse = attention(z, values[ids])
            np.testing.assert_allclose(part.out[t], out, atol=1e-5)
            assert abs(part.lse[t] - lse) < 1e-5


@pytest.mark.parametrize("k", [7, None])
def test_attend_gives_the_same_bits_for_any_thread_count_and_history(k):
    keys, values = (RNG.standard_normal((1, 2, 20_000, 32), np.float32) for _ in range(2))
    queries = RNG.standard_normal((1, 4, 40, 32), np.float32)
    banks = [mx.Bank(heads=2, key_dim=32, value_dim=32) for _ in range(2)]
    banks[0].write(keys, values)
    for start in range(0, 20_000, 777):
        banks[1].write(keys[:, :, start : start + 777], values[:, :, start : start + 777])
    parts = [bank.attend(queries, k, threads=threads) for bank in banks for threads in (1, 2, 3)]
    assert len({part.out.tobytes() + part.lse.tobytes() for part in parts}) == 1


class Stopped(Exception):
    """What a signal's handler raises, as Ctrl-C's does."""


@pytest.mark.parametrize("call", ["write", "commit"])
def test_an_interrupted_write_leaves_nothing_of_it_staged(call):
    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    try:
        # What was staged earlier makes the commit long enough to be interrupted on any machine.
        for power in range(12, 20):
            bank = mx.Bank(heads=8, key_dim=64)
            earlier = bank.stage(np.broadcast_to(np.float32(0.5), (1, 8, 1 << power, 64)))
            one = np.ones((1, 8, 1, 64), np.float32)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-3)
                bank.write(one) if call == "write" else bank.commit()
            except Stopped:
                if len(bank):  # it was through before it was told
                    continue
                receipt = bank.commit()
                assert [ids.tobytes() for ids in receipt.ids] == [earlier.tobytes()]
                assert len(bank) == 8 << power
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        pytest.fail(f"{call} is not interrupted by a signal")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_arrays_of_any_layout_and_half_type_are_read_in_place():
    x = RNG.standard_normal((2, 30, 3, 8), np.float32)  # [rows, T, heads, dim], as a projection gives it
    for dtype in (np.float32, np.float16):
        keys = x.astype(dtype).transpose(0, 2, 1, 3)
        bank = mx.Bank(rows=2, heads=3, key_dim=8, value_dim="key")
        bank.write(keys)
        got, values = bank.gather(np.tile(np.arange(30), (2, 1)))
        assert got.dtype == values.dtype == dtype
        np.testing.assert_array_equal(got, keys)


def test_bfloat16_from_ml_dtypes_is_kept_bit_for_bit():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy has no bfloat16 of its own")
    keys = RNG.standard_normal((50, 8)).astype(ml_dtypes.bfloat16)
    bank = mx.Bank(key_dim=8)
    bank.write(keys)
    np.testing.assert_array_equal(bank.gather(np.arange(50))[0], keys.astype(np.float32))
    with pytest.raises(mx.DtypeError, match="bf16"):
        bank.write(np.full((1, 8), 1 / 3, np.float32))


def test_nonfinite_tokens_may_be_skipped_and_such_queries_answered_with_nan():
    keys = RNG.standard_normal((4, 8)).astype(np.float32)
    keys[2, 3] = np.nan
    bank = mx.Bank(key_dim=8, value_dim="key", nonfinite="skip")
    assert bank.stage(keys).tolist() == [0, 1, -1, 2]
    bank.commit()
    part = bank.attend(keys, 2)
    assert np.isnan(part.out).all(1).tolist() == [False, False, True, False]
    with pytest.raises(mx.NonFinite, match="queries"):
        bank.attend(keys, 2, nonfinite="raise")


def test_numbers_that_a_codec_cannot_hold_are_refused():
    bank = mx.Bank(key_dim=2, key_codec=mx.F16())
    large = np.array([[1, 1], [1e6, 1]], np.float32)
    with pytest.raises(mx.NonFinite, match="65504"):
        bank.write(large)
    assert len(bank) == 0
    assert bank.stage(large, nonfinite="skip").tolist() == [0, -1]
    with pytest.raises(mx.NonFinite, match="bf16"):
        mx.Bank(key_dim=2, key_codec="bf16").write(np.full((1, 2), 3.4e38, np.float32))


def test_an_answer_that_does_not_fit_in_memory_is_refused_and_the_process_lives():
    code = """
import resource, numpy as np, mnemex as mx
bank = mx.Bank(key_dim=8); bank.write(np.ones((10, 8), np.float32))
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
try: bank.search(np.ones((1, 8), np.float32), 2**30)
except mx.ResourceError as error: print(error, len(bank))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "memory" in done.stdout


def test_a_memory_changes_whole_or_not_at_all():
    memory = mx.Memory({layer: mx.Bank(key_dim=4) for layer in (0, 1)})
    memory.stage(1, np.ones((3, 4), np.float32))
    with pytest.raises(mx.StateError, match="staged"):
        memory.fork(2)
    assert [memory[layer].rows for layer in memory.layers] == [1, 1]


def test_labels_and_positions_go_with_their_entries():
    bank = mx.Bank(key_dim=4)
    bank.write(np.ones((64, 4), np.float32))
    sizes = []
    for _ in range(50):
        bank.write(np.ones((1000, 4), np.float32), labels=np.arange(1000), positions=np.arange(1000))
        bank.truncate(64)
        sizes.append(bank.nbytes)
    assert sizes[-1] <= sizes[0]


def test_logits_beyond_float32_are_not_taken_for_an_empty_memory():
    bank = mx.Bank(key_dim=2, value_dim=2)
    bank.write(np.full((3, 2), 1e19, np.float32), np.ones((3, 2), np.float32))
    part = bank.attend(np.full((1, 2), 1e20, np.float32), None)
    assert not np.isneginf(part.lse).any()


@pytest.mark.parametrize("argument", ["rows", "where", "before"])
def test_ragged_lists_are_refused_by_name(argument):
    bank, keys, _ = filled(20)
    with pytest.raises(mx.Error, match=argument):
        bank.search(keys[:2], 1, **{argument: [[1], [1, 2]]})


def test_where_and_before_limit_what_is_seen():
    bank, keys, _ = filled(50)
    queries = keys[:3]
    s = scores(keys, queries, "dot")
    only = np.array([4, 40, 7, 99])
    np.testing.assert_array_equal(bank.search(queries, 3, where=only).ids, best(only[:3], s[:, only[:3]], 3)[1])
    seen = bank.search(queries, 50, before=np.array([0, 1, 20])).valid.sum(1)
    assert seen.tolist() == [0, 1, 20]


def test_a_commit_over_banks_is_all_or_nothing_for_readers():
    memory = mx.Memory({layer: mx.Bank(heads=2, key_dim=4) for layer in (1, 5)})
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            snapshot = memory.snapshot()
            seen.append(len(snapshot[1]) == len(snapshot[5]))

    reader, commits = threading.Thread(target=read), 0
    reader.start()
    while commits < 100 or (len(seen) < 100 and reader.is_alive()):
        for layer in memory.layers:
            memory.stage(layer, np.ones((1, 2, 3, 4), np.float32))
        memory.commit()
        commits += 1
    stop.set()
    reader.join()
    assert len(seen) >= 100
    assert all(seen)
    assert len(memory) == 2 * 2 * 3 * commits


def test_layers_that_share_a_bank_share_it_after_copy_and_open(tmp_path):
    bank = mx.Bank(key_dim=4)
    memory = mx.Memory({0: bank, 1: bank, 2: mx.Bank(key_dim=4)}, fingerprint="abc", next_position=9)
    bank.write(np.ones((5, 4), np.float32))
    memory.save(tmp_path / "memory")
    for other in (memory.copy(), mx.open(tmp_path / "memory")):
        assert other[0] is other[1]
        assert (other.fingerprint, other.next_position, len(other)) == ("abc", 9, 5)
    with pytest.raises(mx.ExistsError, match="memory"):
        memory.save(tmp_path / "memory")
    memory.save(tmp_path / "memory", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


WRONG = {
    "k": lambda bank, q: bank.search(q, 0),
    "2.5": lambda bank, q: bank.search(q, 2.5),
    "2\\*\\*31": lambda bank, q: bank.search(q, 10**12),
    "queries": lambda bank, q: bank.search(q[:, :3], 1),
    "float32": lambda bank, q: bank.search(q.astype(np.float64), 1),
    "before": lambda bank, q: bank.search(q, 1, before=np.zeros(9, np.int64)),
    "where": lambda bank, q: bank.search(q, 1, where=np.ones((1, 1, 1), bool)),
    "rows": lambda bank, q: bank.attend(q, 1, rows=[3]),
    "scale": lambda bank, q: bank.attend(q, 1, scale=float("inf")),
    "softcap": lambda bank, q: bank.attend(q, 1, softcap=0),
    "threads": lambda bank, q: bank.attend(q, 1, threads=0),
    "ids": lambda bank, q: bank.gather(np.array([10**6])),
    "mask": lambda bank, q: bank.stage(q, q[:, :6], mask=np.ones(3, bool)),
    "values": lambda bank, q: bank.stage(q),
    "path": lambda bank, q: bank.save("a\0b"),
    "end": lambda bank, q: bank.truncate(-1),
    "repeats": lambda bank, q: bank.fork(0),
    "index": lambda bank, q: bank.reorder([1]),
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_call_names_what_is_wrong_and_changes_nothing(word):
    bank, keys, _ = filled(20)
    with pytest.raises(mx.Error, match=word):
        WRONG[word](bank, RNG.standard_normal((4, 12), np.float32))
    assert len(bank) == 20
    np.testing.assert_array_equal(bank.gather(np.arange(20))[0], keys)


def test_merge_of_parts_is_attention_over_the_whole():
    bank, keys, values = filled(90)
    parts = []
    for piece in (slice(0, 30), slice(30, 90)):
        one = mx.Bank(key_dim=12, value_dim=6)
        one.write(keys[piece], values[piece])
        parts += one.attend(keys[:5], None)
    whole = bank.attend(keys[:5], None)
    out, lse = mx.merge(*parts)
    np.testing.assert_allclose(out, whole.out, atol=1e-6)
    np.testing.assert_allclose(lse, whole.lse, atol=1e-6)


def test_examples_are_checked_where_nothing_is_learned_from_them():
    bank = mx.Bank(heads=2, key_dim=4, value_dim=3)
    rng = np.random.default_rng(0)
    keys, values = (rng.standard_normal((1, 2, 9, dim), np.float32) for dim in (4, 3))
    assert bank.train(keys, values, queries=keys) is None
    assert len(bank) == 0
    assert bank.version == 0
    with pytest.raises(mx.ShapeError, match=r"queries have 3 .* expected 4"):
        bank.train(keys, queries=values)
    with pytest.raises(mx.ArgumentError, match="values were given"):
        mx.Bank(heads=2, key_dim=4).train(keys, values)


@pytest.mark.parametrize("key_dim", [31, 33, 40, 64])
@pytest.mark.parametrize("n", [1, 4, 16, 20])
def test_values_that_are_no_number_reach_only_the_queries_that_see_them(key_dim, n):
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((600, key_dim), np.float32), rng.standard_normal((600, 64), np.float32)
    values[560:564], values[554:558] = np.inf, np.nan
    bank = mx.Bank(key_dim=key_dim, value_dim=64, nonfinite="keep")
    bank.write(keys, values)
    bank.delete([570])  # the last block is not read as it lies
    queries = rng.standard_normal((n, key_dim), np.float32)
    logits = queries.astype(np.float64) @ keys.T.astype(np.float64) * key_dim**-0.5
    out, lse = bank.attend(queries, None)
    logits[:, 570] = -np.inf
    np.testing.assert_allclose(lse, np.log(np.exp(logits).sum(1)), rtol=1e-5)
    assert not np.isfinite(out).any()
    out, lse = bank.attend(queries, None, before=np.full(n, 550))
    weights = np.exp(logits[:, :550])
    np.testing.assert_allclose(lse, np.log(weights.sum(1)), rtol=1e-5)
    np.testing.assert_allclose(out, weights @ values[:550] / weights.sum(1, keepdims=True), rtol=0, atol=1e-5)
