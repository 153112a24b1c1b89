"""Recipes: the published numbers, and that the tables are shared where the paper shares them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the recipes of layers need torch")

import mnemex as mx  # noqa: E402


def test_product_key_has_the_numbers_of_the_results():
    memory = mx.recipes.product_key(8, values=10)
    assert (memory.n_keys, memory.heads, memory.k, memory.key_dim) == (512, 4, 32, 128)
    assert memory.norm is not None
    assert memory.gate is None
    bound = 64**-0.5
    assert 0.99 * bound < memory.rows.abs().max() <= bound
    assert mx.recipes.product_key(8, n_keys=3, values=None).values.weight.shape == (9, 8)


def test_memory_plus_has_its_numbers_and_shares_its_values():
    first = mx.recipes.memory_plus(8, values=10)
    second = mx.recipes.memory_plus(8, values=first.values)
    assert second.values is first.values
    assert (first.n_keys, first.heads, first.k, first.key_dim) == (1024, 4, 32, 512)
    assert first.norm is None
    bound = 512**-0.5
    assert 0.99 * bound < first.rows.abs().max() <= bound
    assert 0.99 * bound < first.columns.abs().max() <= bound
    assert first.gate.weight.std().item() == pytest.approx(8**-0.5, rel=0.5)
    xavier = (6 / (8 + 4 * 512)) ** 0.5
    assert 0.99 * xavier < first.query.weight.abs().max() <= xavier
    assert (first.query.bias == 0).all()
    x = torch.randn(3, 8)
    assert first(x).shape == x.shape
