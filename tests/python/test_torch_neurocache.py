"""Neurocache: what a segment reads is what the paper's definition says, and gradients are those of that definition."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import mnemex as mx  # noqa: E402
from plain_adapters import PlainNeurocache  # noqa: E402

DIM = 8


def make(dtype=torch.float64, *, seed=0, **how):
    torch.manual_seed(seed)
    cache = mx.torch.Neurocache(DIM, **{"heads": 2, "compression": 2, "k": 3, "capacity": 12, **how})
    with torch.no_grad():
        cache.norm.weight.uniform_(0.5, 2.0)
        cache.norm.bias.normal_()
    return cache.to(dtype)


@settings(max_examples=40)
@given(
    k=st.integers(1, 4), window=st.tuples(st.integers(0, 2), st.integers(0, 2)), context=st.integers(1, 4),
    capacity=st.integers(1, 15), kv=st.sampled_from([1, 2, 4]), raw=st.booleans(), seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data(),
)  # fmt: skip
def test_segments_read_what_the_definition_says(k, window, context, capacity, kv, raw, seed, lengths, data):
    cache = make(seed=seed, heads=4, kv_heads=kv, k=k, window=window, context=context, capacity=capacity, raw=raw)
    rows = [PlainNeurocache(cache, capacity) for _ in range(2)]
    for n in lengths:
        hidden = torch.randn(2, n, DIM, dtype=torch.float64)
        mask = torch.rand(2, n) < 0.8
        start = data.draw(st.none() | st.lists(st.booleans(), min_size=2, max_size=2))
        for plain, begins in zip(rows, start or [False, False], strict=True):
            plain.states = [] if begins else plain.states
        want = torch.stack([plain.read(h) for plain, h in zip(rows, hidden, strict=True)])
        torch.testing.assert_close(cache(hidden, mask, start), want, atol=2e-6, rtol=2e-6)
        for plain, h, kept in zip(rows, hidden, mask, strict=True):
            plain.write(h[kept])
        assert cache.bank.lengths[:, 0].tolist() == [len(plain.states) for plain in rows]


@pytest.mark.parametrize("metric", ["dot", "cos"])
def test_other_metrics_find_others(metric):
    cache = make(metric=metric, compression=1, context=1, window=(0, 0), k=1)
    hidden = torch.randn(1, 9, DIM, dtype=torch.float64)
    cache(hidden)
    found = cache.look_up(hidden)
    states = cache.compress(hidden)[0]
    if metric == "cos":
        states = states / states.norm(dim=-1, keepdim=True)
    assert found.hits.ids[0, 0, :, 0].tolist() == (states @ states.T).argmax(-1).tolist()


@pytest.mark.parametrize("raw", [False, True])
def test_gradients_pass_the_check_by_differences(raw):
    cache = make(raw=raw, layers=2, kv_heads=1)
    cache.write(torch.randn(1, 6, DIM, dtype=torch.float64))
    hidden = torch.randn(1, 4, DIM, dtype=torch.float64, requires_grad=True)
    found = cache.look_up(hidden)
    names = dict(cache.named_parameters())

    def read(hidden, *weights):
        state = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(Attend(cache), {f"cache.{n}": w for n, w in state.items()}, (hidden, found))

    assert torch.autograd.gradcheck(read, (hidden, *names.values()), atol=1e-6)


class Attend(torch.nn.Module):
    def __init__(self, cache):
        super().__init__()
        self.cache = cache

    def forward(self, hidden, found):
        return self.cache.attend(hidden, found, layer=0) + self.cache.attend(hidden, found, layer=1)


def test_the_compressor_learns_from_raw_states_alone():
    for raw in (False, True):
        cache = make(raw=raw)
        hidden = torch.randn(2, 5, DIM, dtype=torch.float64)
        cache(hidden).sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in cache.parameters())  # nothing was stored yet
        cache(hidden).square().sum().backward()
        assert all(p.grad.any() for p in cache.blocks.parameters())
        assert (cache.project.weight.grad is not None and bool(cache.project.weight.grad.any())) == raw


def test_raw_states_are_compressed_by_todays_weights_while_training():
    cache = make(raw=True, capacity=5, k=5, window=(0, 0), context=1)
    hidden = torch.randn(1, 5, DIM, dtype=torch.float64)
    cache.write(hidden)
    with torch.no_grad():
        cache.project.weight.add_(torch.randn_like(cache.project.weight) * 0.3)
    plain = PlainNeurocache(cache, 5)
    plain.write(hidden[0].float().double())  # with the weights of today: all five are read, whatever is near
    torch.testing.assert_close(
        cache.attend(hidden, cache.look_up(hidden))[0], plain.read(hidden[0]), atol=1e-5, rtol=1e-5
    )
    with torch.no_grad():
        stored = cache.attend(hidden, cache.look_up(hidden))[0]
    assert not torch.allclose(stored, plain.read(hidden[0]), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_lower_precision_agrees(dtype, codec):
    exact, cache = make(capacity=6, k=6, window=(0, 0)), make(dtype, capacity=6, k=6, window=(0, 0), codec=codec)
    hidden = torch.randn(2, 6, DIM, dtype=torch.float64)
    exact.write(hidden)
    cache.write(hidden.to(dtype))
    got, want = cache(hidden.to(dtype)).detach(), exact(hidden).detach()
    assert got.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 and codec == "f32" else 5e-2
    assert (got.double() - want).abs().max() <= bound * max(1.0, float(want.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(cache(hidden.to(dtype))).all()


def test_what_is_found_with_its_neighbours_is_used():
    cache = make(evict="lru", capacity=4, k=1, window=(0, 1), context=1)
    first = torch.randn(1, 4, DIM, dtype=torch.float64)
    cache(first)
    cache(first[:, 1:2])  # finds the second and its successor, then writes itself over the least used
    cache.write(torch.randn(1, 1, DIM, dtype=torch.float64))
    assert sorted(cache.bank.find()[0].tolist()) == [1, 2, 4, 5]


def test_bad_numbers_of_one_token_stay_its_own():
    cache = make()
    hidden = torch.randn(1, 5, DIM, dtype=torch.float64)
    hidden[0, 2, 3] = torch.nan
    cache(hidden)
    assert len(cache.bank) == 4
    good = [0, 1, 4]  # the others read what the bad one found
    want = cache.attend(hidden.nan_to_num(), cache.look_up(hidden.nan_to_num()))
    got = cache.attend(hidden, cache.look_up(hidden))
    torch.testing.assert_close(got[0, good], want[0, good])


def test_rows_forget_by_themselves_and_change_when_all_did():
    cache = make()
    hidden = torch.randn(3, 4, DIM, dtype=torch.float64)
    cache(hidden)
    cache.reset([1])
    assert cache.bank.lengths[:, 0].tolist() == [4, 0, 4]
    assert not cache(hidden)[1].any()
    with pytest.raises(mx.ShapeError, match="holds states of 3"):
        cache(hidden[:2])
    cache.reset()
    assert not cache(hidden[:2]).any()
    assert cache.bank.rows == 2
    assert cache(hidden[:, :0]).shape == (3, 0, DIM)


def test_a_copy_has_states_of_its_own_and_checkpoints_have_none():
    cache = make()
    hidden = torch.randn(1, 4, DIM, dtype=torch.float64)
    cache(hidden)
    twin = copy.deepcopy(cache)
    torch.testing.assert_close(twin(hidden), cache(hidden))
    twin.reset()
    assert len(cache.bank) == 8
    assert not any("bank" in name for name in cache.state_dict())


def broken(*_, **__):
    raise RuntimeError("broken")


def test_a_write_that_fails_leaves_nothing_staged(monkeypatch):
    cache = make(evict="lru")
    hidden = torch.randn(1, 4, DIM, dtype=torch.float64)
    cache(hidden)
    with monkeypatch.context() as patched:
        patched.setattr(mx.Bank, "stage", broken)
        with pytest.raises(RuntimeError, match="broken"):
            cache(hidden)
    before = cache.bank.snapshot().version
    cache.bank.commit()
    assert len(cache.bank) == 4
    assert cache.bank.snapshot().version in (before, before + 1)
    cache(hidden)
    assert len(cache.bank) == 8


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"heads": 3}, "no multiple of heads=3"), ({"compression": 3}, "compression=3"),
        ({"compression": 0}, "compression="),
        ({"kv_heads": 3, "heads": 4}, "kv_heads=3"), ({"window": 3}, "window=3"), ({"window": (-1, 0)}, "before="),
        ({"k": 0}, "k="), ({"context": 0}, "context="), ({"codec": "i8"}, "codec='i8'"),
        ({"metric": "near"}, "metric="),
        ({"raw": 1}, "raw="), ({"layers": 0}, "layers="), ({"capacity": 0}, "capacity="),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(how, message):
    with pytest.raises(mx.Error, match=message):
        make(**how)


def test_tensors_that_do_not_fit_are_refused():
    cache = make()
    hidden = torch.randn(2, 4, DIM, dtype=torch.float64)
    for wrong, message in ((hidden[0], "expected"), (hidden[..., 1:], "expected"), (hidden.long(), "floating")):
        with pytest.raises(mx.Error, match=message):
            cache(wrong)
    with pytest.raises(mx.ShapeError, match="mask"):
        cache(hidden, torch.ones(2, 3, dtype=torch.bool))
    cache(hidden)
    with pytest.raises(mx.ShapeError, match="start"):
        cache(hidden, start=[True])
    assert len(cache.bank) == 8
