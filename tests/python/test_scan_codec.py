"""A copy of the keys in eight bits: every answer is that of a bank without it, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnemex as mx


def spiked(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[..., rng.integers(shape[-1])] *= 1e4
    return x


def clustered(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    centres = rng.standard_normal((3, shape[-1]))
    return centres[rng.integers(3, size=shape[:-1])] + 1e-4 * rng.standard_normal(shape)


def odd(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf])
    return x


KINDS = {
    "gauss": lambda rng, shape: rng.standard_normal(shape),
    "clustered": clustered,
    "repeated": lambda rng, shape: rng.standard_normal((5, shape[-1]))[rng.integers(5, size=shape[:-1])],
    "constant": lambda rng, shape: np.full(shape, 0.3),
    "huge and tiny": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-44, 19, (*shape[:-1], 1)),
    "one-hot": lambda rng, shape: np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])],
    "spiked": spiked,
    "zeros": lambda rng, shape: np.zeros(shape) * rng.choice([1.0, -1.0], shape),
    "denormal": lambda rng, shape: rng.standard_normal(shape) * 1e-41,
    "not finite": odd,
}


def same(plain: mx.Bank | mx.Snapshot, coded: mx.Bank | mx.Snapshot, queries: np.ndarray, k: int) -> None:
    # A few queries at a time meet keys as they are stored; many may meet them in bytes, copy or not.
    parts = [plain.search(part, k) for part in np.array_split(queries, -(-queries.shape[2] // 8), axis=2)]
    ids, scores = (np.concatenate([getattr(hits, name) for hits in parts], axis=2) for name in ("ids", "scores"))
    for got in (plain.search(queries, k), coded.search(queries, k)):
        np.testing.assert_array_equal(got.ids, ids)
        np.testing.assert_array_equal(got.scores.view(np.int32), scores.view(np.int32))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    asked=st.sampled_from(sorted(KINDS)),
    metric=st.sampled_from(["dot", "cos"]),
    codec=st.sampled_from(["f32", "f16", "bf16"]),
    dim=st.one_of(st.integers(1, 200), st.just(1500)),
    n=st.integers(1, 700),
    queries=st.one_of(st.integers(1, 20), st.integers(32, 80)),
    seed=st.integers(0, 2**32 - 1),
)
def test_answers_are_those_of_the_keys_through_a_banks_life(
    tmp_path_factory, kind, asked, metric, codec, dim, n, queries, seed
):
    rng = np.random.default_rng(seed)
    dtype = np.float16 if codec == "f16" else np.float32

    def draw(kind: str, shape: tuple[int, ...]) -> np.ndarray:
        with np.errstate(over="ignore"):
            return KINDS[kind](rng, shape).astype(dtype)

    keys, q = draw(kind, (1, 1, n, dim)), draw(asked, (1, 1, queries, dim)).astype(np.float32)
    banks = [
        mx.Bank(key_dim=dim, metric=metric, key_codec=codec, scan_codec=scan, nonfinite="keep")
        for scan in (None, "int8")
    ]
    k = int(rng.integers(1, n + 3))
    for bank in banks:
        for part in np.array_split(keys, [n // 3, n // 2], axis=2):
            bank.write(part)
    same(*banks, q, k)
    gone = rng.integers(n, size=n // 4)
    for bank in banks:
        bank.delete(ids=gone)
    same(*banks, q, k)
    path = tmp_path_factory.mktemp("saved") / "bank"
    banks[1].save(path)
    reopened = mx.open(path)
    assert reopened.stats().scan_codec == "int8"
    copies = [bank.copy() for bank in banks]
    more = draw(kind, (1, 1, 30, dim))
    for bank in (*banks, reopened):
        bank.write(more)
    same(*banks, q, k)
    same(banks[0], reopened, q, k)
    same(*copies, q, k)


def test_wide_keys_and_many_lanes():
    rng = np.random.default_rng(0)
    for rows, heads, n, dim in [(1, 1, 150, 4096), (1, 1, 40, 1 << 16), (3, 2, 500, 64)]:
        keys = rng.standard_normal((rows, heads, n, dim), dtype=np.float32)
        banks = [mx.Bank(rows=rows, heads=heads, key_dim=dim, scan_codec=scan) for scan in (None, "int8")]
        for bank in banks:
            bank.write(keys)
        for per_head in (1, 3):
            queries = rng.standard_normal((rows, heads * per_head, 2, dim), dtype=np.float32)
            same(*banks, queries, 9)


def test_attention_is_that_of_the_keys():
    rng = np.random.default_rng(1)
    keys, values = rng.standard_normal((2, 1, 2, 900, 32), dtype=np.float32)
    queries = rng.standard_normal((1, 4, 1, 32), dtype=np.float32)
    banks = [mx.Bank(heads=2, key_dim=32, value_dim=32, scan_codec=scan) for scan in (None, "int8")]
    for bank in banks:
        bank.write(keys, values)
    for k in (8, None):
        want, got = (bank.attend(queries, k) for bank in banks)
        np.testing.assert_array_equal(got.out, want.out)
        np.testing.assert_array_equal(got.lse, want.lse)


def test_a_quarter_more_memory_and_what_a_bank_says_of_it():
    keys = np.random.default_rng(2).standard_normal((1, 1, 64 * 200, 128), dtype=np.float32)
    plain, coded = (mx.Bank(key_dim=128, scan_codec=scan) for scan in (None, "int8"))
    for bank in (plain, coded):
        bank.write(keys)
    assert coded.stats().key_bytes / plain.stats().key_bytes == 1 + 132 / 512
    assert coded.nbytes == coded.stats().nbytes < 1.27 * plain.nbytes
    assert (plain.stats().scan_codec, coded.stats().scan_codec) == (None, "int8")
    for bank, told in ((plain, False), (coded, True)):
        assert [("int8" in text) for text in (bank.describe(), repr(bank))] == [told, told]


@pytest.mark.parametrize("word", ["nobody", "int4", 8, True])
def test_other_words_are_refused(word):
    with pytest.raises(mx.ArgumentError, match="scan_codec"):
        mx.Bank(key_dim=4, scan_codec=word)


def test_distances_are_refused():
    with pytest.raises(mx.ArgumentError, match=r"scan_codec=.*l2"):
        mx.Bank(key_dim=4, metric="l2", scan_codec="int8")


ASK = """
import sys, numpy as np, mnemex as mx
rng = np.random.default_rng(3)
bank = mx.Bank(key_dim=96, metric=sys.argv[1], scan_codec="int8")
bank.write(rng.standard_normal((1, 1, 3000, 96), dtype=np.float32))
hits = bank.search(rng.standard_normal((1, 1, 9, 96), dtype=np.float32), 40)
print(hits.ids.tobytes().hex(), hits.scores.tobytes().hex())
"""


@pytest.mark.parametrize("metric", ["dot", "cos"])
def test_every_instruction_set_gives_the_same_bits(metric):
    def answer(isa: str) -> str | None:
        env = {**os.environ, "MNEMEX_ISA": isa}
        done = subprocess.run([sys.executable, "-c", ASK, metric], env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            assert f"MNEMEX_ISA={isa} needs instructions" in done.stderr, done.stderr
            return None
        return done.stdout

    answers = {isa: answer(isa) for isa in ("portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")}
    assert len({text for text in answers.values() if text}) == 1
    assert answers["portable"]
