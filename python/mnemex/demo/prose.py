"""The sentences and the table of the report, written from what was found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mnemex.demo.escaping import html
from mnemex.demo.passages import BLOCK, RESTING
from mnemex.demo.units import count, percent, size

if TYPE_CHECKING:
    from mnemex.demo.findings import Reopened, Report, Written
    from mnemex.demo.measure import Row


def sections(report: Report) -> dict[str, str]:
    """Return the parts of the page that are sentences and numbers, as HTML, by their names in the template."""
    return {
        "title": html(f"{report.model} reads {report.reading.text.name}"),
        "lead": _lead(report),
        "rows": "\n".join(_row(row, report) for row in report.rows),
        "table_caption": _table_caption(report),
        "viewer_intro": _viewer_intro(report),
        "viewer_caption": _viewer_caption(report),
        "continuation": _continuation(report.written),
        "reopened": _reopened(report.reopened),
        "method": _method(report),
        "facts": "\n".join(f"<dt>{html(k)}</dt><dd>{html(v)}</dd>" for k, v in report.facts.items()),
    }


def _local(report: Report) -> str:
    return f"{count(report.window)} tokens" + (f" and {report.sinks} sinks" if report.sinks else "")


def _memory_rows(report: Report) -> list[Row]:
    return [row for row in report.rows if row.memory_bytes]


def _lead(report: Report) -> str:
    window, full = report.baseline.bits_per_byte, report.full.bits_per_byte
    text = (
        f"With a window of {_local(report)} the model needs <b>{window:.4f}</b> bits per byte; "
        f"with full attention, <b>{full:.4f}</b>. "
    )
    some = [row for row in _memory_rows(report) if row.k is not None]
    if window <= full:
        return text + "On this text the window loses nothing, so there is nothing for a memory to win back."
    shares = [f"<b>{percent(row.recovered)}</b> when it reads its best {row.k}" for row in some]
    return text + (
        "Give every query a memory of all that left the window, and it wins back "
        + ", ".join(shares)
        + (", and" if shares else "")
        + f" <b>{percent(_memory_rows(report)[-1].recovered)}</b> when it reads every entry."
    )


def _table_caption(report: Report) -> str:
    caption = (
        "<b>Loss recovered</b> counts from the window with its sinks (0 %) to full attention (100 %): both sides "
        "attend to the same local tokens. <b>Local KV</b> and <b>memory</b> are the bytes held at the end of the text: "
        "keys and values in the model's own cache, and the banks in host memory. <b>ms per token</b> is the time in "
        f"the model, retrieval and writes included, at {report.chunk} tokens per call; at {report.whole_chunk} in "
        "the two rows that see everything, which changes nothing there but the time."
    )
    if report.rows[0] is report.baseline:
        return caption
    return caption + (
        " The window without sinks is a plain sliding window: models trained with full attention rest on the first "
        "tokens, and break down when these leave."
    )


def _row(row: Row, report: Report) -> str:
    kind = "memory" if row.memory_bytes else "full" if row is report.full else ""
    first = " first" if (row.memory_bytes and row is _memory_rows(report)[0]) or row is report.full else ""
    share = percent(row.recovered)
    if not math.isnan(row.recovered):
        width = 100 * min(1.0, max(0.0, row.recovered))
        share += f'<span class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'
    return (
        f'<tr class="{kind}{first}"><th scope="row">{html(row.name)}</th><td>{row.bits_per_byte:.4f}</td>'
        f"<td>{share}</td><td>{size(row.local_bytes)}</td>"
        f"<td>{size(row.memory_bytes) if row.memory_bytes else '–'}</td><td>{row.ms_per_token:.2f}</td></tr>"
    )


def _viewer_intro(report: Report) -> str:
    return (
        "The tint is the share of attention that went to the memory when a token was predicted, over all layers and "
        f"heads, with the best {report.reading.k} entries per query and head. Point at a token, or tap it, to see the "
        "passages it was predicted from and what that was worth. Arrow keys move from token to token, "
        "<kbd>Enter</kbd> holds one, <kbd>Esc</kbd> lets go."
    )


def _viewer_caption(report: Report) -> str:
    return (
        f"{html(report.reading.text.name)}, {count(len(report.reading.text.ids))} tokens. Passages are lines, ranked "
        "by the attention their tokens got beyond what they get anyway: many heads with nothing to look for rest on a "
        f"few entries whatever the token, so an entry counts only for what exceeds {RESTING:g} times its average over "
        f"the {BLOCK} tokens around. Tokens in blue stand out in their line. The strip beside the text is the whole "
        "text, with the passages in blue and a line for the token. Bits are those of this token; the window alone is "
        f"the row {html(report.baseline.name)}."
    )


def _continuation(written: Written) -> str:
    n, total = written.n_equal, len(written.full)
    agree = f"all {total} tokens are the same" if n == total else f"the first {n} of {total} tokens are the same"
    same = "".join(written.full[:n])
    text = f"{html(written.prompt_end)}<ins>{html(same)}</ins>"
    if n < total:
        text += f"<del>{html(''.join(written.full[n:]))}</del>"
    other = ""
    if n < total:
        other = (
            "<p>With the memory it went on differently from there:</p>"
            f'<div class="written">…<ins>{html("".join(written.memory[n:]))}</ins></div>'
        )
    return (
        f"<p>Greedy <code>generate</code> after {count(written.n_prompt)} tokens of the file, in float32, once through "
        "transformers' <code>DynamicCache</code> and once through the window and a memory read in full: "
        f"<b>{agree}</b>.</p>"
        f'<div class="written" tabindex="0">{text}</div>{other}'
        '<p class="note">The end of the prompt in grey, what the model wrote on a tint.</p>'
    )


def _reopened(reopened: Reopened) -> str:
    same = reopened.here == reopened.elsewhere
    verdict = "gave the same answers to the bit" if same else "did <b>not</b> give the same answers"
    return (
        f"<p>The memory was saved ({size(reopened.n_bytes)} in {reopened.save_seconds:.1f} s) and opened by a new "
        f"process, which {verdict}: ids, weights, outputs and log-sum-exp of 16 queries per head in every layer, by "
        f'their SHA-256.</p><dl class="facts"><dt>here</dt><dd><code>{html(reopened.here)}</code></dd>'
        f"<dt>new process</dt><dd><code>{html(reopened.elsewhere)}</code></dd></dl>"
    )


def _method(report: Report) -> str:
    last = report.window + report.chunk - 1
    return (
        f"<p>The text is fed {report.chunk} tokens per call, and a call attends to all of itself, so a token attends "
        f"locally to itself and those before it, {count(report.window)} to {count(last)} in all"
        + (f", and to the first {report.sinks} tokens of the text" if report.sinks else "")
        + ". What leaves the window goes to the memory, at its true position; each head of each layer retrieves its "
        "own entries, and one softmax runs over local and retrieved keys together. The rows without a memory attend to "
        "exactly the same local tokens. Bits per byte are the loss of the tokens from "
        f"{count(report.skip)} on, over the bytes these stand for.</p>"
    )
