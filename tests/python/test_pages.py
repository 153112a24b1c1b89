"""Pages beside plain loops: where they begin, what stands for them, and what a read takes, of any history."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from plain_bank import attention, scores
from plain_pages import PlainRow, bounds, is_surprising, read
from plain_readers import once

HEADS, GROUP, TOKENS, DIM, VALUE_DIM = 2, 2, 2, 5, 3


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def whole(rng, *shape):
    """Small whole numbers: ties."""
    return rng.integers(-3, 4, shape).astype(np.float32)


representatives = st.sampled_from(["mean", "last", 1, 3])
policies = st.one_of(
    st.builds(mx.Pages, st.sampled_from([1, 3, 8, 70]), representatives=representatives),
    st.builds(
        mx.Pages,
        boundaries=st.just(True),
        shortest=st.sampled_from([None, 2]),
        longest=st.sampled_from([5, 90]),
        representatives=representatives,
    ),
    st.builds(
        mx.Pages,
        surprise=st.sampled_from([-0.5, 0.0, 1.0]),
        window=st.sampled_from([1, 4, 30]),
        shortest=st.sampled_from([None, 3]),
        longest=st.sampled_from([6, 64]),
        representatives=representatives,
    ),
)
readers = st.builds(mx.Blocks, st.integers(1, 4), st.integers(0, 2), st.booleans())
evicts = st.sampled_from(["fifo", mx.Lru(), mx.Random(), mx.Fifo(sinks=2)])


class History:
    """A bank and what plain lists know of all that was ever written to it."""

    def __init__(self, how, rng, **bank) -> None:
        self.how, self.rng = how, rng
        self.bank = mx.Bank(rows=2, heads=HEADS, key_dim=DIM, value_dim=VALUE_DIM, write=how, **bank)
        self.plain = [PlainRow(), PlainRow()]
        self.entries: list[dict] = [{}, {}]
        """By row and id: keys `[heads, d]`, values, and the number of the column "representative"."""

    def write(self, n: int, calls: int) -> None:
        arriving: list[list] = [[] for _ in self.plain]
        for _ in range(calls):
            rows = len(self.plain)
            keys, values = whole(self.rng, rows, HEADS, n, DIM), whole(self.rng, rows, HEADS, n, VALUE_DIM)
            columns = {
                "boundary": self.rng.random((rows, n)) < 0.3,
                "surprise": self.rng.choice([0, 1, 1.5, 2, 7, np.inf, np.nan], (rows, n)).astype(np.float32),
                "representative": self.rng.choice([-1, 0, 2, np.nan], (rows, n)).astype(np.float32),
            }
            given = {name: x for name, x in columns.items() if name in self.how._columns()}
            ids = self.bank.stage(keys, values, mask=self.rng.random((rows, n)) < 0.9, columns=given)
            for row, t in np.argwhere(ids >= 0):
                i = int(ids[row, t])
                self.entries[row][i] = (keys[row, :, t], values[row, :, t], float(columns["representative"][row, t]))
                arriving[row].append((i, columns["boundary"][row, t], columns["surprise"][row, t]))
        self.bank.commit()
        for plain, tokens in zip(self.plain, arriving, strict=True):
            plain.write(self.how, *([list(x) for x in zip(*tokens, strict=True)] or [[], [], []]))

    def copied(self, row: int):
        plain = self.plain[row]
        return PlainRow(dict(plain.page), list(plain.members), list(plain.window)), dict(self.entries[row])

    def reorder(self, index) -> None:
        rows = [self.copied(row) for row in index]
        self.plain, self.entries = [plain for plain, _ in rows], [entries for _, entries in rows]

    def change(self, kind: str, path) -> None:
        rng, bank = self.rng, self.bank
        row = int(rng.integers(len(self.plain)))
        written = sorted(self.entries[row])
        if kind == "delete" and written:
            bank.delete(rng.choice(written, max(1, len(written) // 5)).tolist(), rows=[row])
        elif kind == "truncate" and written:
            end = int(rng.choice(written))
            bank.truncate(end, rows=[row])
            self.plain[row].forget()
        elif kind == "reset":
            bank.reset(rows=[row])
            self.plain[row].forget()
        elif kind == "reorder":
            index = rng.integers(0, len(self.plain), 2).tolist()
            bank.reorder(index)
            self.reorder(index)
        elif kind == "fork" and len(self.plain) < 4:
            bank.fork(2)
            self.reorder([row for row in range(len(self.plain)) for _ in range(2)])
        elif kind == "save":
            bank.save(path)
            self.bank = mx.open(path)
        elif kind == "copy":
            self.bank, other = bank.copy(), bank
            del other

    def check(self, reader, arguments, sees) -> None:
        """Every read of every row agrees."""
        rows, bank, how = len(self.plain), self.bank, self.how
        queries = whole(self.rng, rows, HEADS * GROUP, TOKENS, DIM)
        longest = int(np.max(bank.lengths, initial=0))
        everything = bank.search(np.ones((rows, HEADS, 1, DIM), np.float32), max(longest, 1))
        live, told = everything.ids[:, :, 0], bank.gather(everything, columns=["page"])[2]["page"][:, :, 0]
        found = bank.search(queries, reader, **arguments)
        part = bank.attend(queries, reader, scale=0.25, hits=True, **arguments)
        bare = bank.attend(queries, reader, scale=0.25, **arguments)
        for row, lane in np.ndindex(rows, HEADS):
            ids = [int(i) for i in live[row, lane] if i >= 0]
            entries, page = self.entries[row], self.plain[row].page
            assert told[row, lane][live[row, lane] >= 0].tolist() == [page[i] for i in ids]
            heads = range(lane * GROUP, (lane + 1) * GROUP)
            of_lane = [(head, t) for head in heads for t in range(TOKENS)]
            views = [[i for i in ids if sees(row, t, i)] for _, t in of_lane]
            keys = {i: entries[i][0][lane] for i in ids}
            want = read(
                how, reader, bank.metric, [queries[row, head, t] for head, t in of_lane], views, page, keys,
                {i: entries[i][2] for i in ids},
            )  # fmt: skip
            for (head, t), answer in zip(of_lane, want, strict=True):
                at = (row, head, t)
                assert found.ids[at].tolist() == answer
                each = [
                    scores(keys[i][None], queries[at][None], bank.metric)[0, 0] if i >= 0 else -np.inf for i in answer
                ]
                s = np.array(each, np.float32)
                np.testing.assert_array_equal(found.scores[at].view(np.int32), s.view(np.int32))
                places = part.hits.ids.shape[-1]
                assert part.hits.ids[at].tolist() == answer[:places]
                assert not any(i >= 0 for i in answer[places:])
                first = once(answer)
                assert found.distinct[at].tolist() == first
                taken = [j for j, is_first in enumerate(first) if is_first]
                of_values = np.array([entries[answer[j]][1][lane] for j in taken], np.float32).reshape(-1, VALUE_DIM)
                logits = s[taken].astype(np.float64) * 0.25
                out, lse = attention(logits, of_values)
                for got in (part, bare):
                    np.testing.assert_allclose(got.out[at], out, atol=5e-5)
                    np.testing.assert_allclose(got.lse[at], lse, atol=2e-5, rtol=1e-5)
                mass = np.zeros(places)
                mass[taken] = np.exp(logits - lse) if taken else []
                np.testing.assert_allclose(part.mass[at], mass, atol=1e-5)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_pages_of_any_history_are_what_loops_say(tmp_path_factory, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    history = History(
        data.draw(policies),
        rng,
        capacity=data.draw(st.sampled_from([None, 13, 40])),
        evict=data.draw(evicts),
        metric=data.draw(st.sampled_from(["dot", "cos", "l2"])),
    )
    kinds = st.sampled_from(
        ["write", "write", "write", "delete", "truncate", "reset", "reorder", "fork", "save", "copy"]
    )
    for step in range(data.draw(st.integers(1, 6))):
        kind = data.draw(kinds)
        if kind == "write":
            history.write(data.draw(st.sampled_from([0, 1, 7, 30])), data.draw(st.integers(1, 2)))
        else:
            history.change(kind, tmp_path_factory.mktemp("bank") / str(step))
        arguments, bits, ends = {}, np.ones(2000, bool), np.full((len(history.plain), TOKENS), 10**6)
        if data.draw(st.booleans()):
            arguments["where"] = bits = rng.random(2000) < 0.7
        if data.draw(st.booleans()):
            most = max(max(entries, default=0) for entries in history.entries)
            arguments["before"] = ends = rng.integers(0, most + 2, (len(history.plain), TOKENS))
        history.check(
            data.draw(readers), arguments, lambda row, t, i, ends=ends, bits=bits: i < ends[row, t] and bits[i]
        )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_surprise_begins_pages_where_a_loop_says(data):
    how = data.draw(policies.filter(lambda how: how.surprise is not None and how.representatives == "mean"))
    surprise = np.array(data.draw(st.lists(st.floats(-9, 99, width=32), min_size=1, max_size=200)), np.float32)
    bank = mx.Bank(key_dim=2, write=how)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(surprise)), max_size=4)))
    for part in np.split(surprise, cuts):
        bank.write(np.ones((len(part), 2), np.float32), columns={"surprise": part})
    page = bank.gather(np.arange(len(surprise)), columns=["page"])[2]["page"]
    shortest, longest = bounds(how)
    begins, start = [], 0
    for t, x in enumerate(surprise.tolist()):
        window = surprise[max(0, t - how.window) : t].tolist()
        if t == 0 or t - start == longest or (is_surprising(x, window, how.surprise) and t - start >= shortest):
            start = t
        begins.append(start)
    assert page.tolist() == begins


def test_an_event_begins_where_the_model_is_surprised():
    surprise = np.full(100, 2.0, np.float32)
    surprise[[20, 55]] = 9.0
    bank = mx.Bank(key_dim=4, write=mx.Pages(surprise=1.0, longest=64))
    bank.write(gauss(100, 4), columns={"surprise": surprise})
    assert bank.find(where=("page", "==", 20))[0].tolist() == list(range(20, 55))
    assert np.unique(bank.gather(np.arange(100), columns=["page"])[2]["page"]).tolist() == [0, 20, 55]


@pytest.mark.parametrize("shared", [False, True])
def test_all_pages_are_full_attention(shared):
    bank = mx.Bank(heads=2, key_dim=8, value_dim=6, write=mx.Pages(16))
    bank.write(gauss(1, 2, 300, 8), gauss(1, 2, 300, 6, seed=1))
    bank.delete(np.arange(40, 64))
    queries = gauss(1, 4, 5, 8, seed=2)
    want = bank.attend(queries, None)
    for reader in (mx.Blocks(10**9, shared=shared), mx.Blocks(18, 3, shared=shared), mx.Blocks(1, 19, shared=shared)):
        got = bank.attend(queries, reader)
        np.testing.assert_allclose(got.out, want.out, atol=1e-5)
        np.testing.assert_allclose(got.lse, want.lse, atol=1e-5)
    # Few pages, however many are asked for.
    assert bank.attend(queries, mx.Blocks(10**9), hits=True).hits.ids.shape[-1] == 18 * 16


def test_a_page_that_was_forgotten_has_no_part_in_what_is_read():
    def filled(keys):
        bank = mx.Bank(key_dim=4, value_dim=4, write=mx.Pages(8))
        bank.write(keys, keys)
        bank.search(gauss(1, 4), mx.Blocks(2))
        bank.delete([*range(8, 16), 17])
        return bank

    keys, queries = gauss(40, 4), gauss(6, 4, seed=1)
    other = keys.copy()
    other[[*range(8, 16), 17]] = 1e6
    for reader in (mx.Blocks(1, 1), mx.Blocks(5)):
        a, b = (filled(x).search(queries, reader) for x in (keys, other))
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
        # Those around the page that is gone are each other's neighbours.
        assert not np.isin(a.ids, range(8, 16)).any()


def test_what_a_query_does_not_see_does_not_choose_for_it():
    keys, queries = gauss(64, 4), gauss(3, 4, seed=1)
    later = keys.copy()
    later[20:] = gauss(44, 4, seed=5) * 100
    found = []
    for x in (keys, later):
        bank = mx.Bank(key_dim=4, write=mx.Pages(16))
        bank.write(x)
        found.append(bank.search(queries, mx.Blocks(1), before=np.full((1, 3), 20)))
    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


def test_queries_that_are_not_finite_have_no_say():
    bank = mx.Bank(key_dim=4, value_dim=4, write=mx.Pages(8))
    bank.write(gauss(64, 4), gauss(64, 4, seed=1))
    queries = gauss(5, 4, seed=2)
    spoilt = np.concatenate([queries, np.full((1, 4), np.nan, np.float32)])
    want = bank.attend(queries, mx.Blocks(2, shared=True))
    got = bank.attend(spoilt, mx.Blocks(2, shared=True), nonfinite="keep")
    np.testing.assert_array_equal(got.out[:5], want.out)
    assert np.isnan(got.out[5]).all()


def test_keys_without_a_number_keep_a_page_from_being_chosen():
    keys = gauss(24, 4)
    keys[10, 2] = np.nan
    bank = mx.Bank(key_dim=4, value_dim=4, write=mx.Pages(8), nonfinite="keep")
    bank.write(keys, keys)
    ids = bank.search(gauss(3, 4, seed=1), mx.Blocks(3)).ids
    assert not np.isin(ids, range(8, 16)).any()
    near = bank.search(gauss(1, 4, seed=1), mx.Blocks(1, 1)).ids
    assert 10 not in near


def test_a_page_that_is_being_written_goes_on_after_a_save(tmp_path):
    rng = np.random.default_rng(0)
    surprise, keys = rng.exponential(2.0, 400).astype(np.float32), gauss(400, 4)
    pages = []
    for saves in (False, True):
        bank = mx.Bank(key_dim=4, write=mx.Pages(surprise=0.5, window=40, longest=30))
        for step, at in enumerate(range(0, 400, 25)):
            bank.write(keys[at : at + 25], columns={"surprise": surprise[at : at + 25]})
            if saves:
                bank.save(tmp_path / str(step))
                bank = mx.open(tmp_path / str(step))
        pages.append(bank.gather(np.arange(400), columns=["page"])[2]["page"].tolist())
    assert pages[0] == pages[1]


def test_numbers_of_pages_come_back_from_a_copy_and_go_apart_from_it():
    bank = mx.Bank(key_dim=2, write=mx.Pages(4))
    bank.write(np.ones((6, 2), np.float32))
    other = bank.copy()
    bank.write(np.ones((3, 2), np.float32))
    other.truncate(5)
    other.write(np.ones((3, 2), np.float32))
    assert bank.gather(np.arange(9), columns=["page"])[2]["page"].tolist() == [0] * 4 + [4] * 4 + [8]
    assert other.gather(np.array([4, 6, 7, 8]), columns=["page"])[2]["page"].tolist() == [4, 6, 6, 6]


CODE = """
import hashlib, numpy as np, mnemex as mx
rng, sha = np.random.default_rng(3), hashlib.sha256()
for n, d, dtype in ((3000, 24, "f4"), (700, 37, "f2")):
    keys = rng.standard_normal((n, d)).astype(dtype); keys[n // 2:] = keys[: n - n // 2]
    queries = rng.standard_normal((1, 2, 70, d)).astype("f4")
    for metric in ("dot", "cos", "l2"):
        bank = mx.Bank(key_dim=d, metric=metric, value_dim=3, write=mx.Pages(32))
        bank.write(keys, np.ones((n, 3), dtype))
        bank.delete(np.arange(0, n, 7))
        for reader in (mx.Blocks(3), mx.Blocks(2, 1, shared=True)):
            found = [bank.search(queries, reader, threads=threads) for threads in (1, 2, 3)]
            read = [bank.attend(queries, reader, threads=threads) for threads in (1, 2, 3)]
            assert len({hits.ids.tobytes() + hits.scores.tobytes() for hits in found}) == 1
            assert len({part.out.tobytes() + part.lse.tobytes() for part in read}) == 1
            sha.update(found[0].ids.tobytes() + found[0].scores.tobytes())
print(sha.hexdigest())"""


def test_ids_and_scores_are_the_same_on_every_instruction_set_and_thread_count():
    told = set()
    for isa in mx.build_info().isas:
        environment = {**os.environ, "MNEMEX_ISA": isa}
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
        told.add(done.stdout)
    assert len(told) == 1
