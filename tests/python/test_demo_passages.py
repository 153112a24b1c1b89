"""Retrieved entries become weights of tokens, and these become passages."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from demo_parts import trace
from mnemex.demo.passages import BLOCK, Passage, Passages, line_of_each


def test_mass_is_the_memorys_share_averaged_over_layers_and_heads():
    passages = Passages(np.zeros(8, np.int64), sinks=2)
    ids = np.array([[[[0, 1], [0, -1]], [[2, 3], [1, 2]]]])  # 2 heads, 2 queries, 2 hits
    passages.add(2, {0: trace(ids, np.array([[[0.2, 0.4], [0.6, 0.8]]])), 5: trace(ids, np.zeros((1, 2, 2)))})
    np.testing.assert_allclose(passages.mass[:2], [0.2, 0.3], rtol=1e-6)
    assert not passages.mass[2:].any()


def test_an_entry_is_the_token_after_the_sinks():
    lines = np.arange(300)
    passages = Passages(lines, sinks=4)
    ids = np.full((1, 1, BLOCK, 1), -1)
    ids[0, 0, 100] = 7
    passages.add(BLOCK, {0: trace(ids, np.full((1, 1, BLOCK), 0.5))})
    ((line, weight, peaks),) = passages.by_token[100]
    assert (line, peaks) == (11, (11,))
    assert weight == pytest.approx(0.5 * (1 - 2 / BLOCK))
    assert not passages.by_token[99]


def test_tokens_that_read_nothing_have_no_mass_and_no_passages():
    passages = Passages(np.arange(40), sinks=0)
    passages.add(10, {})
    passages.add(30, {0: trace(np.zeros((1, 1, 30, 1), np.int64), np.full((1, 1, 30), 0.5))})
    passages.finish()
    np.testing.assert_allclose(passages.mass, [0.0] * 10 + [0.5] * 30)
    assert len(passages.by_token) == 40
    assert not any(passages.by_token[:10])


def test_what_every_token_rests_on_is_no_passage():
    passages = Passages(np.arange(200), sinks=0)
    ids = np.full((1, 1, BLOCK, 2), 3)
    ids[0, 0, 64, 1] = 9
    passages.add(BLOCK, {0: trace(ids, np.full((1, 1, BLOCK), 0.5))})
    assert [p.line for p in passages.by_token[64]] == [9]
    assert not passages.by_token[63]


def test_passages_are_lines_with_the_tokens_that_stand_out():
    lines = np.repeat([0, 1, 4], 10)  # lines 2 and 3 begin no token
    passages = Passages(lines, sinks=0)
    ids = np.full((1, 10, 20, 1), -1)
    ids[0, :, 15, 0] = [11, 11, 11, 12, 13, 13, 2, 2, 25, 25]
    passages.add(20, {0: trace(ids, np.ones((1, 10, 20)))})
    passages.finish()
    beyond = 1 - 2 / 20
    assert passages.by_token[15] == [
        Passage(1, pytest.approx(0.6 * beyond), (11, 13)),
        Passage(0, pytest.approx(0.2 * beyond), (2,)),
        Passage(4, pytest.approx(0.2 * beyond), (25,)),
    ]


@pytest.mark.parametrize("chunk", [1, 50, 64, 1000])
def test_every_token_gets_its_passages_whatever_the_chunk(chunk):
    n, rng = 300, np.random.default_rng(0)
    ids, share = rng.integers(0, n, (1, 2, n, 3)), rng.uniform(0, 1, (1, 2, n))
    passages = Passages(np.arange(n) // 7, sinks=0)
    for start in range(0, n, chunk):
        span = slice(start, start + chunk)
        passages.add(len(range(n)[span]), {0: trace(ids[:, :, span], share[:, :, span])})
    passages.finish()
    assert len(passages.by_token) == n
    np.testing.assert_allclose(passages.mass, share.mean((0, 1)), rtol=1e-5)
    assert all(best == sorted(best, key=lambda p: -p.weight) for best in passages.by_token)


def test_lines_are_counted_where_pieces_begin():
    np.testing.assert_array_equal(line_of_each(["a", "\n", "", "b\n\n", "c", "\n  ", "d"]), [0, 0, 1, 1, 3, 3, 4])
