"""What banks and memories say of themselves: right numbers, nothing of the content, readable everywhere."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

import mnemex as mx


class Page(HTMLParser):
    """The text of a page whose tags are balanced and fetch nothing."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & dict(attrs).keys()
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def filled(**options) -> mx.Bank:
    bank = mx.Bank(rows=2, heads=2, key_dim=8, value_dim=4, **options)
    keys = np.full((2, 2, 20, 8), 12345.5, np.float32)
    bank.write(keys, keys[..., :4], mask=np.arange(20) < np.array([[20], [7]]))
    return bank


def test_stats_count_entries_bytes_and_history():
    bank = filled(capacity=16, key_codec="f16", value_codec="bf16")
    bank.delete([19], rows=[0])
    bank.stage(np.ones((2, 2, 1, 8), np.float32), np.ones((2, 2, 1, 4), np.float32))
    stats = bank.stats()
    assert (stats.rows, stats.heads, stats.key_dim, stats.value_dim, stats.metric) == (2, 2, 8, 4, "dot")
    assert (stats.key_codec, stats.value_codec, stats.evict) == ("f16", "bf16", "fifo")
    assert (stats.entries, stats.live_min, stats.live_median, stats.live_max) == (2 * (15 + 7), 7, 11.0, 15)
    assert stats.used == 44 / 64
    # A block of 16 rows of 64 bytes per lane; what was evicted on arrival was never in one.
    assert (stats.key_bytes, stats.value_bytes, stats.blocks) == (4 * 16 * 64, 4 * 16 * 64, 4)
    assert stats.dead == 2 / 46
    assert stats.nbytes == bank.nbytes
    assert stats.nbytes == stats.key_bytes + stats.value_bytes + stats.side_bytes + stats.staged_bytes
    assert stats.staged_bytes > 4 * 2 * 64
    assert (stats.version, stats.commits, stats.evictions) == (2, 1, 8)
    frozen = bank.snapshot().stats()
    assert frozen.staged_bytes == 0
    assert frozen.nbytes == bank.snapshot().nbytes
    with pytest.raises(AttributeError):
        stats.entries = 3  # type: ignore[misc]


def test_what_is_shared_is_counted_once():
    bank = filled()
    one = bank.stats()
    bank.fork(3)
    bank.delete([0], rows=[0])
    stats = bank.stats()
    assert (stats.blocks, stats.key_bytes, stats.dead) == (one.blocks, one.key_bytes, 0)
    assert stats.entries == 3 * one.entries - 2
    bank.delete([0])
    assert bank.stats().dead == 4 / 54


def test_an_empty_bank_without_rows_has_numbers_too():
    for bank in (mx.Bank(key_dim=3), mx.Bank(rows=0, key_dim=3, capacity=4)):
        stats = bank.stats()
        assert (stats.entries, stats.live_min, stats.live_median, stats.live_max, stats.dead) == (0, 0, 0, 0, 0)
        assert "none" in bank.describe()
        Page(bank._repr_html_())


@pytest.mark.parametrize("options", [{}, {"capacity": 16}, {"metric": "cos", "evict": "error", "capacity": 99}])
def test_every_text_tells_the_size_and_nothing_of_the_content(options):
    bank = filled(**options)
    for thing in (bank, bank.snapshot()):
        page = Page(thing._repr_html_())
        for text in (repr(thing), thing.describe(), " ".join(page.text), str(thing.stats())):
            assert "12345" not in text
            assert str(len(thing)) in text
        assert thing.describe().startswith(type(thing).__name__)
        columns = {line.index(line.split("  ")[-1].strip()) for line in thing.describe().splitlines()[1:]}
        assert len(columns) == 1, "texts start in one column"


def test_a_bar_shows_the_share_of_the_capacity():
    bank = mx.Bank(key_dim=4, capacity=4)
    bank.write(np.ones((3, 4), np.float32))
    assert "width:75.0%" in bank._repr_html_()
    assert "75 % of the capacity" in bank._repr_html_()
    assert "75 % used" in bank.describe()


def test_a_memory_describes_each_layer_and_counts_a_shared_bank_once():
    shared = filled(capacity=40)
    memory = mx.Memory({2: shared, 5: mx.Bank(rows=2, key_dim=8), 9: shared})
    for thing in (memory, memory.snapshot()):
        assert list(thing.stats()) == [2, 5, 9]
        head, columns, *lines = thing.describe().splitlines()
        assert head.startswith(f"{type(thing).__name__}: {len(shared)} entries in 3 layers, ")
        assert len({len(line) for line in [columns, *lines]}) == 1
        assert "as layer 2" in lines[2]
        text = Page(thing._repr_html_()).text
        assert "33.8 %" in text
        assert "as layer 2" in text
