"""The suite that `mnemex.testing` gives to users, over every policy of this package and two in Python."""

from __future__ import annotations

import sys

import pytest

import mnemex as mx
from examples.policies import LeastRecent, NearestMean
from mnemex.consolidate import WRITES
from mnemex.evict import EVICTS
from mnemex.testing import check_policy

CASES = {
    "append": {},
    "consolidate": {"write": mx.Consolidate(threshold=0.9), "evict": mx.OldestAge()},
    "consolidate, dot": {"write": mx.Consolidate(threshold=0.5, similarity="dot"), "evict": mx.Lru()},
    "consolidate, sequential": {"write": mx.Consolidate(threshold=0.9, conflicts="sequential")},
    "consolidate, ema": {"write": mx.Consolidate(threshold=0.9, merge="ema", rate=0.3)},
    "min_score": {"evict": mx.MinScore(column="worth", decay=0.9), "columns": {"worth": "float32"}},
    "retention, pinned": {"evict": mx.Retention(sinks=1, recent=1)},
    "attention_mass, pooled": {"evict": mx.AttentionMass(pool=3)},
    "lfu, decaying": {"evict": mx.Lfu(decay=0.5)},
    "merge_adjacent": {"write": mx.MergeAdjacent(2, segment=4)},
    "merge_adjacent, commit by commit": {"write": mx.MergeAdjacent(2, merge="midpoint"), "evict": mx.Lru()},
    "merge_adjacent, never evicting": {"write": mx.MergeAdjacent(2, segment=4, beyond="merge")},
    "cluster": {"write": mx.Cluster(0.5, reservoir=2), "evict": mx.OldestAge()},
    "pages": {"write": mx.Pages(size=3)},
    "pages, surprising": {"write": mx.Pages(surprise=0.5, shortest=2, longest=4, representatives=2)},
    "as evict policy, with less room": {"evict": LeastRecent(), "capacity": 4},
    "attention_mass, windowed": {"evict": mx.AttentionMass(window=3)},
    "a policy in Python": {"write": LeastRecent(sinks=1)},
    "as evict policy": {"evict": LeastRecent(), "capacity": 10},
    "one that merges": {"write": NearestMean(0.9), "evict": mx.OldestAge()},
}
CASES |= {name: {"evict": name} for name in EVICTS if name != "min_score"}


@pytest.mark.parametrize("name", CASES)
def test_a_policy_keeps_what_all_must_keep(name):
    check_policy(**CASES[name], examples=8, steps=20)


def test_every_policy_is_among_them():
    assert {name for name in CASES if name in EVICTS} == set(EVICTS), "min_score is named for its case"
    writes = {getattr(case.get("write"), "name", "append") for case in CASES.values()}
    assert writes >= set(WRITES)


def test_one_lane_and_no_columns():
    check_policy(LeastRecent(), rows=1, heads=1, examples=5)


def test_hypothesis_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(mx.MissingDependency, match="pip install hypothesis"):
        check_policy()
