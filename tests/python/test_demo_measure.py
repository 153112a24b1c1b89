"""What the table's numbers rest on: losses chunk by chunk, the cache without a memory, bits per byte, shares."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the demo needs torch")
transformers = pytest.importorskip("transformers", reason="the demo needs transformers")

from demo_parts import byte_model, text_of  # noqa: E402
from mnemex.demo.local_window import LocalWindow  # noqa: E402
from mnemex.demo.measure import Row, bits_per_byte, chunk_for, held_bytes, stream, with_recovered  # noqa: E402  # noqa: E402

IDS = np.random.default_rng(0).integers(1, 257, 90)


def losses(model, mask: np.ndarray | None = None) -> np.ndarray:
    """Losses of one forward pass over the whole text, under a mask `[n, n]` of who sees whom."""
    tokens = torch.from_numpy(IDS)[None]
    given = None if mask is None else torch.from_numpy(mask)[None, None]
    with torch.no_grad():
        logits = model(tokens, attention_mask=given).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").double().numpy()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_losses_do_not_depend_on_the_chunk(chunk):
    model, read = byte_model(), []
    streamed = stream(model, IDS, cache=transformers.DynamicCache(), chunk=chunk, advance=read.append)
    assert math.isnan(streamed.nats[0])
    np.testing.assert_allclose(streamed.nats[1:], losses(model), rtol=0, atol=2e-5)
    assert sum(read) == len(IDS)
    assert streamed.seconds > 0


@pytest.mark.parametrize(
    ("window", "sinks", "chunk"), [(16, 4, 1), (16, 4, 5), (16, 0, 5), (1, 4, 1), (1, 0, 3), (200, 4, 8)]
)
def test_the_local_window_sees_its_chunk_the_window_before_it_and_the_sinks(window, sinks, chunk):
    model, n_layers = byte_model(), 2
    cache = LocalWindow(n_layers, window=window, sinks=sinks)
    streamed = stream(model, IDS, cache=cache, chunk=chunk)
    query, key = np.arange(90)[:, None], np.arange(90)[None]
    begins = query // chunk * chunk
    mask = (key <= query) & ((key > begins - window) | (key < sinks))
    np.testing.assert_allclose(streamed.nats[1:], losses(model, mask), rtol=0, atol=2e-5)
    held = min(90, window - 1 + sinks)
    assert held_bytes(cache) == held * n_layers * 2 * 2 * 8 * 4  # keys and values, 2 heads of 8 floats


def test_bits_per_byte_counts_the_measured_part_alone():
    text = text_of("ab\U0001f9e0")
    nats = np.array([np.nan, 9.0, 1.0, 2.0, 0.0, 0.5, 0.5])
    assert bits_per_byte(nats, text, skip=2) == pytest.approx(4.0 / math.log(2) / 5)


def test_the_share_recovered_runs_from_the_window_to_full_attention():
    plain, window, half, full = (Row("", bits, 0, 0, 0.0) for bits in (3.0, 2.0, 1.5, 1.0))
    shares = [row.recovered for row in with_recovered([plain, window, half, full], window=window, full=full)]
    assert math.isnan(shares[0])
    assert shares[1:] == [0.0, 0.5, 1.0]
    assert all(math.isnan(row.recovered) for row in with_recovered([full, window], window=full, full=window))


def test_a_chunk_is_a_quarter_of_the_window():
    assert [chunk_for(window) for window in (1, 7, 16, 512, 100_000)] == [1, 1, 4, 128, 128]
