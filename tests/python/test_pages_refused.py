"""Pages and readers of pages that cannot be, and tokens that no page can be made of."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import mnemex as mx


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: mx.Pages(), mx.ArgumentError, "none of them"),
        (lambda: mx.Pages(8, boundaries=True), mx.ArgumentError, "size and boundaries"),
        (lambda: mx.Pages(boundaries=True, surprise=1.0), mx.ArgumentError, "boundaries and surprise"),
        (lambda: mx.Pages(0), mx.ArgumentError, "size=0"),
        (lambda: mx.Pages(2.5), mx.DtypeError, "size=2.5"),
        (lambda: mx.Pages(8, longest=9), mx.ArgumentError, "longest=9"),
        (lambda: mx.Pages(8, shortest=2), mx.ArgumentError, "shortest=2"),
        (lambda: mx.Pages(boundaries=True, window=9), mx.ArgumentError, "window=9"),
        (lambda: mx.Pages(boundaries=1), mx.DtypeError, "boundaries=1"),
        (lambda: mx.Pages(surprise=float("nan")), mx.ArgumentError, "surprise=nan"),
        (lambda: mx.Pages(surprise=1.0, window=0), mx.ArgumentError, "window=0"),
        (lambda: mx.Pages(8, representatives="best"), mx.ArgumentError, "representatives='best'"),
        (lambda: mx.Pages(8, representatives=0), mx.ArgumentError, "representatives=0"),
        (lambda: mx.Pages(8, representatives=None), mx.DtypeError, "representatives=None"),
        (lambda: mx.Blocks(0), mx.ArgumentError, "n=0"),
        (lambda: mx.Blocks(2, -1), mx.ArgumentError, "contiguous=-1"),
        (lambda: mx.Blocks(2.0), mx.DtypeError, "n=2.0"),
        (lambda: mx.Blocks(2, shared=1), mx.DtypeError, "shared=1"),
        (lambda: mx.Bank(key_dim=2, write="pages"), mx.ArgumentError, "Pages\\(size=128\\)"),
        (lambda: mx.Bank(key_dim=2, write=mx.Pages(2**40)), mx.ArgumentError, "longest="),
        (
            lambda: mx.Bank(key_dim=2, write=mx.Pages(boundaries=True, shortest=9, longest=8)),
            mx.ArgumentError,
            "shortest=9",
        ),
        (
            lambda: mx.Bank(key_dim=2, write=mx.Pages(8), columns={"page": "float32"}),
            mx.ArgumentError,
            "columns\\['page'\\]",
        ),
    ],
)
def test_parts_that_cannot_be(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_pages_are_read_where_there_are_some():
    bank = mx.Bank(key_dim=2, value_dim=2)
    bank.write(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32))
    for read in (bank.search, bank.attend):
        with pytest.raises(mx.ArgumentError, match=r"write=Pages\(size=128\)"):
            read(np.ones((1, 2), np.float32), mx.Blocks(1))


def test_answers_of_too_many_places_are_refused():
    bank = mx.Bank(key_dim=2, value_dim=2, write=mx.Pages(2**20))
    bank.write(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32))
    queries = np.ones((1, 2), np.float32)
    for reader in (mx.Blocks(2**12), mx.Blocks(1, 2**62)):
        with pytest.raises(mx.ArgumentError, match=r"2(\*\*|\^)31"):
            bank.search(queries, reader)
    assert bank.attend(queries, mx.Blocks(2**62)).out.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("how", "given", "match"),
    [
        (mx.Pages(4), {"page": np.zeros(3, np.int64)}, "'page'|\"page\""),
        (mx.Pages(boundaries=True), None, "boundary"),
        (mx.Pages(surprise=1.0), {}, "surprise"),
        (mx.Pages(4, representatives=2), None, "representative"),
    ],
)
def test_tokens_that_no_page_is_made_of_leave_the_bank_as_it_was(how, given, match):
    bank = mx.Bank(key_dim=2, write=how)
    with pytest.raises(mx.ArgumentError, match=match):
        bank.stage(np.ones((3, 2), np.float32), columns=given)
    bank.commit()
    assert len(bank) == 0


def forged(path, change):
    """Alter a manifest and seal it again, as one who means harm would."""
    file = path / "manifest.json"
    body = json.loads(file.read_text())["body"]
    change(body)
    text = json.dumps(body, separators=(",", ":"))
    file.write_text(f'{{"checksum":"{hashlib.sha256(text.encode()).hexdigest()}","body":{text}}}\n')


@pytest.mark.parametrize(
    "change",
    [
        lambda bank: bank["config"]["write"]["pages"].update(longest=2),
        lambda bank: bank["config"]["write"]["pages"].update(longest=0),
        lambda bank: bank["config"]["write"]["pages"].update(shortest=5),
        lambda bank: bank["config"]["write"]["pages"].update(boundaries="column"),
        lambda bank: bank["stored"][0]["paged"].update(page=-7),
        lambda bank: bank["stored"][0]["paged"].update(page=0),
        lambda bank: bank["stored"][0]["paged"].update(page=99),
        lambda bank: bank["stored"][0]["paged"].update(recent=[0, 0]),
    ],
)
def test_pages_that_no_bank_wrote_are_not_opened(tmp_path, change):
    bank = mx.Bank(key_dim=2, write=mx.Pages(4))
    bank.write(np.ones((10, 2), np.float32))
    bank.save(tmp_path / "bank")
    assert mx.open(tmp_path / "bank").search(np.ones((1, 2), np.float32), mx.Blocks(2)).valid.sum() == 8
    forged(tmp_path / "bank", lambda body: change(body["banks"][0]))
    with pytest.raises(mx.Error):
        mx.open(tmp_path / "bank")
