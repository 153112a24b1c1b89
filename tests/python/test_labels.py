"""Labels as keys, and what is done about one that is there already."""

from __future__ import annotations

import numpy as np
import pytest

import mnemex as mx


def keys(n: int, *, lanes: tuple[int, int] | None = None) -> np.ndarray:
    return np.arange(n * 4 * (lanes[0] * lanes[1] if lanes else 1), dtype=np.float32).reshape((*(lanes or ()), n, 4))


def labels(bank: mx.Bank, row: int = 0) -> dict[int, int]:
    """Label by live id."""
    hits = bank.snapshot().search(np.zeros((bank.rows, bank.heads, 1, 4), np.float32), 99)
    ids, found = hits.ids[row, 0, 0], hits.labels[row, 0, 0]
    return dict(sorted(zip(ids[ids >= 0].tolist(), found[ids >= 0].tolist(), strict=True)))


@pytest.fixture
def bank() -> mx.Bank:
    bank = mx.Bank(key_dim=4)
    bank.write(keys(4), labels=[10, 20, 20, -1])
    return bank


def test_raise_names_the_label_the_row_and_both_places(bank):
    with pytest.raises(
        mx.ArgumentError, match=r"labels of row 0 hold label 20 at token 1, and entry 1 of the row has it"
    ):
        bank.stage(keys(2), labels=[30, 20], on_duplicate="raise")
    with pytest.raises(mx.ArgumentError, match=r"hold label 30 twice, at tokens 0 and 2"):
        bank.stage(keys(3), labels=[30, 40, 30], on_duplicate="raise")
    bank.stage(keys(1), labels=[30])
    with pytest.raises(mx.ArgumentError, match="label 30 at token 0"):
        bank.write(keys(1), labels=[30], on_duplicate="raise")
    bank.commit()
    assert labels(bank) == {0: 10, 1: 20, 2: 20, 3: -1, 4: 30}


def test_skip_keeps_the_first_of_a_call_and_gives_the_others_no_id(bank):
    ids = bank.stage(keys(5), labels=[30, 20, 30, -1, -1], on_duplicate="skip")
    assert ids.tolist() == [4, -1, -1, 5, 6]
    receipt = bank.commit()
    assert receipt.landed[0].tolist() == [4, -1, -1, 5, 6]
    assert labels(bank) == {0: 10, 1: 20, 2: 20, 3: -1, 4: 30, 5: -1, 6: -1}


def test_replace_ends_every_entry_with_the_label_and_the_last_one_stays(bank):
    first = bank.stage(keys(3), labels=[20, 30, 20], on_duplicate="replace")
    second = bank.stage(keys(1), labels=[30], on_duplicate="replace")
    assert first.tolist() == [4, 5, 6]
    assert second.tolist() == [7]
    assert labels(bank) == {0: 10, 1: 20, 2: 20, 3: -1}
    receipt = bank.commit()
    assert [x.tolist() for x in receipt.landed] == [[-1, -1, 6], [7]]
    assert receipt.evicted == 0
    assert labels(bank) == {0: 10, 3: -1, 6: 20, 7: 30}


def test_what_was_to_be_replaced_stays_where_the_token_is_taken_back(bank):
    bank.stage(keys(2), labels=[20, 10], on_duplicate="replace")
    bank.rollback(end=5)
    bank.commit()
    assert labels(bank) == {0: 10, 3: -1, 4: 20}
    bank.stage(keys(1), labels=[10], on_duplicate="replace")
    bank.rollback()
    with pytest.raises(mx.ArgumentError, match="label 10"):
        bank.stage(keys(1), labels=[10], on_duplicate="raise")


def test_a_label_is_free_where_its_entry_was_deleted_truncated_or_evicted():
    bank = mx.Bank(key_dim=4, capacity=3)
    bank.write(keys(3), labels=[1, 2, 3], on_duplicate="raise")
    bank.delete(labels=[2])
    bank.write(keys(1), labels=[2], on_duplicate="raise")
    bank.truncate(1)
    bank.write(keys(2), labels=[2, 3], on_duplicate="raise")
    bank.write(keys(1), labels=[4], on_duplicate="raise")
    bank.write(keys(1), labels=[1], on_duplicate="raise")
    assert list(labels(bank).values()) == [3, 4, 1]
    bank.reset()
    bank.write(keys(1), labels=[1], on_duplicate="raise")


def test_rows_have_labels_of_their_own_and_keep_them_when_they_move():
    bank = mx.Bank(rows=2, heads=2, key_dim=4)
    bank.write(keys(2, lanes=(2, 2)), labels=[[1, 2], [3, 4]], on_duplicate="raise")
    bank.write(keys(1, lanes=(2, 2)), labels=[[3], [1]], on_duplicate="raise")
    bank.reorder([1, 0])
    with pytest.raises(mx.ArgumentError, match="row 0 hold label 4"):
        bank.stage(keys(1, lanes=(2, 2)), labels=[[4], [4]], on_duplicate="raise")
    ids = bank.stage(keys(1, lanes=(2, 2)), labels=[[2], [2]], on_duplicate="skip")
    assert ids.tolist() == [[3], [-1]]


def test_a_replacement_makes_room_under_a_capacity_that_refuses():
    bank = mx.Bank(key_dim=4, capacity=3, evict="error")
    bank.write(keys(3), labels=[1, 2, 3])
    bank.write(keys(3), labels=[3, 2, 3], on_duplicate="replace")
    with pytest.raises(mx.CapacityError):
        bank.stage(keys(2), labels=[1, 4], on_duplicate="replace")
    bank.write(keys(1), labels=[1], on_duplicate="replace")
    assert labels(bank) == {4: 2, 5: 3, 6: 1}


def test_a_replacement_makes_room_before_the_oldest_is_evicted():
    bank = mx.Bank(key_dim=4, capacity=3)
    bank.write(keys(3), labels=[1, 2, 3])
    assert bank.write(keys(1), labels=[3], on_duplicate="replace").evicted == 0
    assert labels(bank) == {0: 1, 1: 2, 3: 3}
    receipt = bank.write(keys(4), labels=[4, 2, 4, 5], on_duplicate="replace")
    assert (receipt.evicted, receipt.landed[0].tolist()) == (2, [-1, 5, 6, 7])
    assert labels(bank) == {5: 2, 6: 4, 7: 5}


def test_deleting_by_label_acts_at_once_on_what_is_live(bank):
    bank.stage(keys(2), labels=[20, 10], on_duplicate="replace")
    version = bank.version
    bank.delete(ids=[3], labels=[20, 77, -1])
    assert bank.version == version + 1
    assert labels(bank) == {0: 10}
    bank.commit()
    assert labels(bank) == {4: 20, 5: 10}


def test_masked_and_non_finite_tokens_have_no_say(bank):
    bad = keys(3)
    bad[1] = np.nan
    ids = bank.stage(bad, labels=[5, 5, 5], mask=[0, 1, 1], nonfinite="skip", on_duplicate="raise")
    assert ids.tolist() == [-1, -1, 4]


def test_wrong_ways_are_refused(bank):
    with pytest.raises(mx.ArgumentError, match="on_duplicate='perhaps' is not known"):
        bank.stage(keys(1), labels=[1], on_duplicate="perhaps")
    with pytest.raises(mx.ArgumentError, match="on_duplicate= compares labels, and labels are missing"):
        bank.stage(keys(1), on_duplicate="skip")
    with pytest.raises(mx.ArgumentError, match="neither ids nor labels"):
        bank.delete(rows=[0])
    with pytest.raises(mx.DtypeError, match="labels are float64"):
        bank.delete(labels=[0.5])
    assert not bank._native.has_staged


def test_the_index_costs_what_its_labels_cost_and_is_swept(bank):
    before = bank.nbytes
    bank.write(keys(1), labels=[99], on_duplicate="skip")
    assert bank.nbytes > before
    small = mx.Bank(key_dim=4, capacity=10)
    for at in range(0, 6000, 10):
        small.write(keys(10), labels=np.arange(at, at + 10), on_duplicate="replace")
    assert small.stats().staged_bytes < 24 * 3000
