"""A memory for plain PyTorch modules: exact, seen through hooks alone, and gone without a trace."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.overrides import _get_current_function_mode_stack  # noqa: E402

import mnemex as mx  # noqa: E402
from attention_setting import close, gauss  # noqa: E402

ROWS, N, HEADS, DIM, ENTRIES = 2, 5, 4, 8, 11
WIDTH = HEADS * DIM


class SelfAttention(nn.Module):
    """Attention as people write it today."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(out.transpose(1, 2).flatten(2))


def memory(n=1, rows=ROWS, entries=ENTRIES):
    banks = {i: mx.Bank(rows=rows, heads=HEADS, key_dim=DIM, value_dim=DIM) for i in range(n)}
    for i, bank in banks.items():
        if entries:
            bank.write(gauss(rows, HEADS, entries, DIM, seed=10 + i), gauss(rows, HEADS, entries, DIM, seed=20 + i))
    return mx.Memory(banks)


def dense(module, x, mask, numbers=None, i=0):
    """Compute the same module over entries and tokens in one piece, in float64; `mask` is additive `[.., Q, K]`."""
    if isinstance(module, nn.MultiheadAttention):
        weight, bias, out = module.in_proj_weight, module.in_proj_bias, module.out_proj
    else:
        weight, bias, out = module.qkv.weight, module.qkv.bias, module.out
    x, weight, bias = x.double(), weight.double(), bias.double()
    q, k, v = functional.linear(x, weight, bias).unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4)
    keys, values = (gauss(ROWS, HEADS, ENTRIES, DIM, seed=s + i).double() for s in (10, 20))
    far, near = (q @ y.transpose(-1, -2) * DIM**-0.5 for y in (keys, k))
    far = far if numbers is None else far + numbers.double()[None, :, None, None]
    weights = torch.cat([far, near + mask.double()], -1).softmax(-1)
    mixed = (weights @ torch.cat([values, v], 2)).transpose(1, 2).flatten(2)
    return functional.linear(mixed, out.weight.double(), out.bias.double())


CAUSAL = torch.full((N, N), -torch.inf).triu(1)
PADS = torch.tensor([[False] * N, [False] * 3 + [True] * 2])
BLOCKED = torch.zeros(ROWS, 1, 1, N).masked_fill(PADS[:, None, None], -torch.inf)
MULTI_HEAD = {
    "plain": ({}, torch.zeros(N, N)),
    "causal": ({"attn_mask": CAUSAL < 0, "is_causal": True}, CAUSAL),
    "additive": ({"attn_mask": gauss(N, N, seed=30)}, gauss(N, N, seed=30)),
    "per head": (
        {"attn_mask": gauss(ROWS * HEADS, N, N, seed=31)}, gauss(ROWS * HEADS, N, N, seed=31).view(ROWS, HEADS, N, N)
    ),
    "pads": ({"key_padding_mask": PADS}, BLOCKED),
    "pads and causal": ({"key_padding_mask": PADS, "attn_mask": CAUSAL < 0}, BLOCKED + CAUSAL),
    "pads and additive": (
        {"key_padding_mask": BLOCKED.view(ROWS, N), "attn_mask": gauss(N, N, seed=30)}, BLOCKED + gauss(N, N, seed=30)
    ),
}  # fmt: skip


@pytest.mark.parametrize("top_k", [None, ENTRIES])
@pytest.mark.parametrize("case", MULTI_HEAD)
def test_multi_head_attention_equals_attention_over_the_concatenation(case, top_k):
    options, mask = MULTI_HEAD[case]
    torch.manual_seed(0)
    for batch_first in (True, False):
        module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        nn.init.normal_(module.in_proj_bias)
        x = gauss(ROWS, N, WIDTH, seed=1)
        given = x if batch_first else x.transpose(0, 1)
        with mx.torch.attach(module, memory(), top_k=top_k):
            out, weights = module(given, given, given, **options)
        assert weights is None
        out = out if batch_first else out.transpose(0, 1)
        want = dense(module, x, mask)
        close(out, want)
        mine = torch.autograd.grad(out.square().sum(), list(module.parameters()))
        theirs = torch.autograd.grad(want.square().sum(), list(module.parameters()))
        for one, other in zip(mine, theirs, strict=True):
            # The bias of the keys moves every local score alike: next to nothing is left of its gradient.
            assert (one - other).abs().max() <= 2e-5 * max(1, other.abs().max())


@pytest.mark.parametrize("mask", [None, "bool", "additive"])
def test_a_module_that_calls_the_function_equals_attention_over_the_concatenation(mask):
    torch.manual_seed(0)
    module, x = SelfAttention(), gauss(ROWS, N, WIDTH, seed=2)
    given = {None: None, "bool": (CAUSAL == 0)[None, None] & ~PADS[:, None, None], "additive": gauss(N, N, seed=32)}[
        mask
    ]
    additive = {None: CAUSAL, "bool": CAUSAL + BLOCKED, "additive": given}[mask]
    bias = mx.torch.Bias(HEADS)
    nn.init.normal_(bias.weight)
    for merge in ("joint", bias):
        with mx.torch.attach(nn.Sequential(module), memory(), top_k=None, merge=merge) as a:
            out = module(x, given)
            numbers = next(a.parameters(), None)
            want = dense(module, x, additive, numbers)
            close(out, want)
            if numbers is not None:
                mine = torch.autograd.grad(out.sum(), numbers)[0]
                close(mine, torch.autograd.grad(want.sum(), numbers)[0], 2e-5)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_an_encoder_reads_in_every_layer_past_the_fast_path(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).train(training), gauss(ROWS, N, WIDTH, seed=3)
    for options in ({}, {"src_key_padding_mask": PADS}):
        before, state = model(x, **options), list(model.state_dict())
        attended = []

        def note(module, given, out, attended=attended):
            attended.append((module, given[0], out[0]))

        with mx.torch.attach(model, memory(2), top_k=None):
            hooks = [layer.self_attn.register_forward_hook(note) for layer in model.layers]
            assert not torch.equal(model(x, **options), before)
            for hook in hooks:
                hook.remove()
        assert len(attended) == 2
        for i, (module, given, out) in enumerate(attended):
            close(out, dense(module, given, BLOCKED if options else torch.zeros(N, N), i=i))
        assert torch.equal(model(x, **options), before)
        assert list(model.state_dict()) == state
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_an_empty_memory_gives_the_same_bits_and_writing_leaves_pads_out():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), 2).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = gauss(ROWS, N, WIDTH, seed=4)
    for layer in model.layers:
        layer.self_attn.dropout = 0.0
    before = model(x, src_key_padding_mask=PADS)
    with mx.torch.attach(model, memory(2, entries=0), write="all") as a:
        assert torch.equal(model(x, src_key_padding_mask=PADS), before)
        assert len(a.memory) == 0
        a.commit()
        assert [a.memory[i].lengths.tolist() for i in (0, 1)] == [[[5] * HEADS, [3] * HEADS]] * 2
        assert not torch.equal(model(x, src_key_padding_mask=PADS), before)


def test_what_fails_leaves_no_mode_and_stages_nothing():
    module, x = SelfAttention(), gauss(ROWS, N, WIDTH, seed=5)
    failing = nn.Sequential(module, nn.Linear(3, 3))
    with mx.torch.attach(failing, memory(entries=0), write="all", modules=["0"]) as a:
        with pytest.raises(RuntimeError):
            failing(x)
        assert not _get_current_function_mode_stack()
        a.commit()
        assert len(a.memory) == 0


def test_after_an_interrupt_from_the_keyboard_nothing_else_reads_the_memory():
    class Interrupted(SelfAttention):
        stop = False

        def forward(self, x):
            out = super().forward(x)
            if self.stop:
                raise KeyboardInterrupt
            return out

    torch.manual_seed(0)
    module, other, x = Interrupted(), SelfAttention(), gauss(ROWS, N, WIDTH, seed=9)
    before = other(x)
    with mx.torch.attach(module, memory(), top_k=None, write="all", modules=[""]) as a:
        want = module(x)
        a.memory.rollback()
        module.stop = True
        with pytest.raises(KeyboardInterrupt):
            module(x)
        assert torch.equal(other(x), before)
        module.stop = False
        assert torch.equal(module(x), want)
        a.commit()
        assert a.memory[0].lengths.tolist() == [[ENTRIES + N] * HEADS] * ROWS
        module.stop = True
        with pytest.raises(KeyboardInterrupt):
            module(x)
    assert torch.equal(other(x), before)
    assert torch.overrides._get_current_function_mode_stack() == []  # else nothing compiles to one graph any more


@pytest.mark.parametrize("reentrant", [False, True])
def test_point_09_checkpointing_stages_once_and_reads_one_version_twice(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.checkpointed = SelfAttention(), False

        def forward(self, x):
            if self.checkpointed:
                return checkpoint(self.inner, x, use_reentrant=reentrant)
            return self.inner(x)

    torch.manual_seed(0)
    model, gradients, losses = Model(), [], []
    for checkpointed in (False, True):
        model.checkpointed = checkpointed
        x = gauss(ROWS, N, WIDTH, seed=6).requires_grad_()
        with mx.torch.attach(model, memory(), top_k=4, write="all", modules=["inner"]) as a:
            loss = model(x).square().sum()
            a.commit()
            loss.backward()
            a.commit()
            assert a.memory[0].lengths.tolist() == [[ENTRIES + N] * HEADS] * ROWS
        gradients.append(x.grad)
        losses.append(loss.detach())
    close(*gradients)
    assert torch.equal(*losses)


@torch.no_grad()
def test_threads_and_copies_and_other_models_are_left_alone():
    torch.manual_seed(0)
    module, x = SelfAttention(), gauss(ROWS, N, WIDTH, seed=7)
    before = module(x)
    with mx.torch.attach(nn.Sequential(module), memory(), top_k=None) as a:
        want, other = module(x), copy.deepcopy(module)
        assert torch.equal(other(x), before)
        found = []
        threads = [threading.Thread(target=lambda: found.append(module(x))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for out in found:
            # torch may divide a product otherwise in another thread.
            torch.testing.assert_close(out, want, rtol=0, atol=1e-6)
        assert "Sequential" in repr(a)
    assert len(found) == 4
    assert torch.equal(module(x), before)


class Unseen(nn.Module):
    """Attention with plain matrix products."""

    def forward(self, x):
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x


def test_what_is_refused():
    module, x = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), gauss(ROWS, N, WIDTH, seed=8)
    with pytest.raises(mx.Error, match=r"Unseen has no nn\.MultiheadAttention"):
        mx.torch.attach(Unseen(), memory())
    unseen = nn.Sequential(Unseen())
    with mx.torch.attach(unseen, memory(), modules=["0"]), pytest.raises(mx.Error, match="Unseen attended in no way"):
        unseen(x)
    for options, match in (({"add_bias_kv": True}, "bias_k"), ({"add_zero_attn": True}, "add_zero_attn")):
        odd = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
        with mx.torch.attach(odd, memory()), pytest.raises(mx.Error, match=match):
            odd(x, x, x)
    for change, match in (
        ({"write": "evicted"}, "write"),
        ({"merge": "gate"}, "merge"),
        ({"top_k": 0}, "top_k"),
        ({"modules": ["attention"]}, "modules"),
        ({"modules": []}, "modules"),
        ({"memory": memory(2)}, "memory has banks"),
    ):
        with pytest.raises(mx.Error, match=match):
            mx.torch.attach(module, **{"memory": memory(), **change})
    with mx.torch.attach(module, memory()[0]):
        with pytest.raises(mx.Error, match="attached already"):
            mx.torch.attach(module, memory())
        with pytest.raises(mx.Error, match="detach"):
            pickle.dumps(module)
        with pytest.raises(mx.Error, match="rows"):
            module(x[:1], x[:1], x[:1])
    pickle.dumps(module)


@torch.no_grad()
def test_passes_of_several_threads_each_keep_their_tokens():
    torch.manual_seed(0)
    inside, ahead = threading.Barrier(2), threading.Event()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = SelfAttention(), SelfAttention()

        def forward(self, x, *, first, fails=False):
            x = self.one(x)
            inside.wait(10)
            if not first:
                ahead.wait(10)
            elif fails:
                raise ValueError
            return self.two(x)

    model, x = Model(), gauss(ROWS, N, WIDTH, seed=5)

    def run(*, fails):
        try:
            model(x, first=True, fails=fails)
        except ValueError:
            pass
        finally:
            ahead.set()

    for fails, passes in ((False, 2), (True, 1)):
        ahead.clear()
        with mx.torch.attach(model, memory(2, entries=0), write="all") as a:
            thread = threading.Thread(target=run, kwargs={"fails": fails})
            thread.start()
            model(x, first=False)
            thread.join()
            a.commit()
            assert [a.memory[i].lengths.tolist() for i in (0, 1)] == [[[passes * N] * HEADS] * ROWS] * 2


@pytest.mark.parametrize("change", [{"heads": 1}, {"key_dim": 4}, {"value_dim": 1}])
@torch.no_grad()
def test_a_bank_of_another_shape_or_metric_is_named(change):
    module, x = SelfAttention(), gauss(ROWS, N, WIDTH, seed=5)
    bank = mx.Bank(**{"rows": ROWS, "heads": HEADS, "key_dim": DIM, "value_dim": DIM, **change})
    with mx.torch.attach(module, bank), pytest.raises(mx.ShapeError, match="the bank of module 0 has heads"):
        module(x)
    other = mx.Bank(rows=ROWS, heads=HEADS, key_dim=DIM, value_dim=DIM, metric="l2")
    with pytest.raises(mx.Unsupported, match="metric='l2'"):
        mx.torch.attach(module, other)
    q = gauss(ROWS, HEADS, N, DIM)
    with pytest.raises(mx.Unsupported, match="metric='l2'"):
        mx.torch.attention(q, q, q, memory=other, top_k=None)


def test_masks_of_whole_numbers_are_refused():
    q = gauss(ROWS, HEADS, N, DIM)
    with pytest.raises(mx.DtypeError, match=r"attn_mask is torch\.int64"):
        mx.torch.attention(q, q, q, memory=memory()[0], top_k=None, attn_mask=torch.ones(N, N, dtype=torch.long))
