"""What banks and memories say of themselves: numbers, a text for people, and a table for notebooks.

Only counts and sizes are told, never what was stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Stats:
    """One version of a bank in numbers; what rows or versions share is counted once.

    Attributes
    ----------
    rows, heads, key_dim, value_dim, metric, evict
        What the bank is; `value_dim` is None without values.
    key_codec, value_codec
        Names; None until the first write decides, and where there is nothing to store.
    scan_codec
        Name of what the copy of the keys for first passes is stored as; None where there is none.
    entries
        Live entries, over all lanes.
    live_min, live_median, live_max
        Live entries per lane; 0 without lanes.
    capacity
        Live entries per lane at most, a tuple with one number for each head where they differ, or None.
    used
        Share of the capacity that live entries take, over all lanes; None without a capacity.
    key_bytes, value_bytes
        Bytes of blocks for keys, their copy for first passes included, and for values of their own, with room for more
        rows.
    side_bytes
        Bytes of all that finds entries and belongs to them: references, norms, labels, positions, usage.
    staged_bytes
        Bytes of what is staged, and of the index by label; 0 in a snapshot.
    nbytes
        The sum of the four.
    blocks
        Blocks.
    dead
        Share of the rows written to blocks that no live entry needs any more; 0 without rows.
    version
        Number of the version.
    commits, evictions
        Commits of anything, and entries that the evict policy ended, since the bank was made or opened; a copy goes on
        from its source.
    touches, mass
        Touches of entries that are live, and the sum of the softmax weights that came with them. Not saved.
    """

    rows: int
    heads: int
    key_dim: int
    value_dim: int | None
    metric: str
    evict: str
    key_codec: str | None
    value_codec: str | None
    scan_codec: str | None
    entries: int
    live_min: int
    live_median: float
    live_max: int
    capacity: int | tuple[int, ...] | None
    used: float | None
    key_bytes: int
    value_bytes: int
    side_bytes: int
    staged_bytes: int
    nbytes: int
    blocks: int
    dead: float
    version: int
    commits: int
    evictions: int
    touches: int
    mass: float


class Described:
    """Something with `Stats`."""

    def stats(self) -> Stats:
        """Count what is there and what it costs; looks at every block."""
        raise NotImplementedError

    def describe(self) -> str:
        """Say what it is, what it costs and how full it is, in a few aligned lines."""
        lines = _facts(self.stats())
        width = max(len(name) for name, _ in lines)
        head = f"{type(self).__name__}\n"
        return head + "\n".join(f"  {name:<{width}}  {text}" for name, text in lines)

    def _repr_html_(self) -> str:
        stats = self.stats()
        rows = [(name, escape(text)) for name, text in _facts(stats)]
        share: float | None
        if stats.used is not None:
            share, of = stats.used, "of the capacity"
        elif stats.blocks:
            share, of = 1 - stats.dead, "of the rows in blocks are live"
        else:
            share, of = None, ""
        return _table(type(self).__name__, None, [*rows, ("occupancy", _bar(share, of))])


class DescribedLayers:
    """Something with a bank, or a snapshot of one, by layer."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a bank, ascending."""
        raise NotImplementedError

    def __getitem__(self, layer: int) -> Described:
        raise NotImplementedError

    def stats(self) -> dict[int, Stats]:
        """Give `Stats` by layer; layers that share a bank have the same."""
        banks = {layer: self[layer] for layer in self.layers}
        once = {id(bank): bank.stats() for bank in banks.values()}
        return {layer: once[id(bank)] for layer, bank in banks.items()}

    def describe(self) -> str:
        """Say what each layer holds and costs, one aligned line per layer, and what they come to together."""
        cells = [_COLUMNS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
        return self._title() + "\n" + "\n".join(f"  {line}" for line in lines)

    def _repr_html_(self) -> str:
        bars = ["" if stats.used is None else _bar(stats.used, "") for stats in self.stats().values()]
        # The bar says what share is used.
        cells = [[*row[:_USED], *row[_USED + 1 :]] for row in [_COLUMNS, *self._rows()]]
        rows = [[*map(escape, row), bar] for row, bar in zip(cells[1:], bars, strict=True)]
        return _table(self._title(), [*cells[0], "occupancy"], rows)

    def _rows(self) -> list[list[str]]:
        """List the cells of each layer, in the order of `_COLUMNS`."""
        first: dict[int, int] = {}
        rows = []
        for layer, stats in self.stats().items():
            owner = first.setdefault(id(self[layer]), layer)
            size = _size(stats.nbytes) if owner == layer else f"as layer {owner}"
            full = ("none", "-") if stats.used is None else (_room(stats.capacity), _percent(stats.used))
            counts = [str(layer), f"{stats.rows:,}", str(stats.heads), f"{stats.entries:,}", f"{stats.live_max:,}"]
            rows.append([*counts, *full, size])
        return rows

    def _title(self) -> str:
        stats = self.stats()
        distinct = {id(self[layer]): each for layer, each in stats.items()}.values()
        entries, size = sum(each.entries for each in distinct), sum(each.nbytes for each in distinct)
        held = f"{_count(entries, 'entry', 'entries')} in {_count(len(stats), 'layer')}"
        return f"{type(self).__name__}: {held}, {_size(size)}"


_COLUMNS = ["layer", "rows", "heads", "entries", "longest lane", "capacity", "used", "size"]
_USED = _COLUMNS.index("used")


def _facts(stats: Stats) -> list[tuple[str, str]]:
    """Name what people ask about, and answer."""
    lanes = stats.rows * stats.heads
    if stats.value_dim is None:
        values = "none"
    elif stats.value_codec is None and stats.value_bytes == 0 and stats.key_bytes:
        values = "the keys"
    else:
        values = f"{stats.value_dim} numbers, {stats.value_codec or 'auto'}, {_size(stats.value_bytes)}"
    scans = f", {stats.scan_codec} copy for first passes" if stats.scan_codec else ""
    full = "none" if stats.used is None else f"{_room(stats.capacity)} entries per lane, {_percent(stats.used)} used"
    median = f"{stats.live_median:,.10g}"
    return [
        (
            "entries",
            f"{stats.entries:,} in {_count(lanes, 'lane')}: {_count(stats.rows, 'row')}, {_count(stats.heads, 'head')}",
        ),
        ("per lane", f"{stats.live_min:,} to {stats.live_max:,}, median {median}"),
        ("capacity", f"{full}; beyond it: {stats.evict}" if stats.used is not None else full),
        ("metric", stats.metric),
        ("keys", f"{stats.key_dim} numbers, {stats.key_codec or 'auto'}{scans}, {_size(stats.key_bytes)}"),
        ("values", values),
        ("side data", f"{_size(stats.side_bytes)}, and {_size(stats.staged_bytes)} staged"),
        ("together", _size(stats.nbytes)),
        ("blocks", f"{stats.blocks:,}, {_percent(stats.dead)} of their rows dead"),
        (
            "history",
            f"version {stats.version:,}, {_count(stats.commits, 'commit')}, {_count(stats.evictions, 'eviction')}",
        ),
        ("usage", f"{_count(stats.touches, 'touch', 'touches')}, mass {stats.mass:.6g}"),
    ]


def _room(capacity: int | tuple[int, ...] | None) -> str:
    """Write the entries that lanes hold at most."""
    each = capacity if isinstance(capacity, tuple) else (capacity or 0,)
    least, most = min(each), max(each)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _size(n: int) -> str:
    """Write bytes in the decimal unit that leaves one to three digits before the point."""
    if n < 1000:
        return f"{n} B"
    size = n / 1000
    for unit in ("kB", "MB", "GB"):
        if size < 999.95:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _percent(share: float) -> str:
    """Write a share so that only nothing is 0 % and only all is 100 %."""
    text = f"{100 * share:.1f}"
    if text == "0.0" and share > 0:
        return "< 0.1 %"
    if text == "100.0" and share < 1:
        return "> 99.9 %"
    return f"{text.removesuffix('.0')} %"


def _bar(share: float | None, of: str) -> str:
    """Draw a share, None where there is nothing; in the page's own text colour, so that any background will do."""
    filled = min(max(100 * (share or 0.0), 0.0), 100.0)
    text = "nothing is stored" if share is None else f"{_percent(share)} {of}".strip()
    return (
        '<span style="display:inline-block;vertical-align:middle;width:10em;height:0.8em;margin-right:0.6em;'
        'border:1px solid currentColor;border-radius:2px">'
        f'<span style="display:block;height:100%;width:{filled:.1f}%;background:currentColor;opacity:0.6"></span>'
        "</span>"
        f"{escape(text)}"
    )


def _table(title: str, columns: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """Lay cells of HTML out; without columns, the first cell of a row is its head."""
    style = "padding:0.15em 0.8em;border:none;color:inherit;background:transparent;white-space:nowrap"
    left, right = f'style="{style};text-align:left"', f'style="{style};text-align:right"'
    head = ""
    if columns is not None:
        head = "<thead><tr>" + "".join(f'<th scope="col" {right}>{escape(c)}</th>' for c in columns) + "</tr></thead>"
        body = "".join("<tr>" + "".join(f"<td {right}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    else:
        body = "".join(f'<tr><th scope="row" {left}>{escape(k)}</th><td {left}>{v}</td></tr>' for k, v in rows)
    caption = f'<caption style="caption-side:top;text-align:left;color:inherit"><b>{escape(title)}</b></caption>'
    table = f'<table style="border-collapse:collapse;color:inherit">{caption}{head}<tbody>{body}</tbody></table>'
    return f'<div class="mnemex">{table}</div>'
