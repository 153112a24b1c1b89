"""torch.compile(fullgraph=True) of attention with a memory: one graph while the bank grows, the same numbers."""

from __future__ import annotations

import gc

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import mnemex as mx  # noqa: E402
from attention_setting import DIM, HEADS, KV_HEADS, N_KEYS, N_QUERIES, ROWS, Setting, gauss  # noqa: E402
from mnemex.torch import compiled  # noqa: E402


class Block(torch.nn.Module):
    """Projections around attention, as a model has them."""

    def __init__(self, bank, merge, **options):
        super().__init__()
        self.wide = torch.nn.Linear(DIM, DIM)
        self.bank, self.merge, self.options = bank, merge, options

    def forward(self, q, k, v):
        out = mx.torch.attention(self.wide(q), k, v, memory=self.bank, merge=self.merge, **self.options)
        return out * 2 + q


def grow(bank):
    bank.write(gauss(ROWS, KV_HEADS, 3, DIM, seed=len(bank)), gauss(ROWS, KV_HEADS, 3, DIM, seed=len(bank) + 1))


OPTIONS = {
    "joint": lambda: {"merge": "joint", "top_k": 5, "is_causal": True},
    "bias": lambda: {"merge": mx.torch.Bias(HEADS), "top_k": None},
    "gate, mask": lambda: {
        "merge": mx.torch.Gate(HEADS), "top_k": 5, "attn_mask": gauss(ROWS, 1, N_QUERIES, N_KEYS, seed=80) < 0.5,
    },
    "learned mask": lambda: {"merge": "joint", "top_k": 5, "attn_mask": gauss(N_QUERIES, N_KEYS).requires_grad_()},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_point_19_one_graph_while_the_bank_grows(options):
    torch._dynamo.reset()
    s = Setting(entries=0)
    block = Block(s.bank, **OPTIONS[options]())
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(block, fullgraph=True, backend=counter)
    learned = [*block.parameters(), *(x for x in [block.options.get("attn_mask")] if x is not None and x.requires_grad)]
    for _ in range(4):
        mine, theirs = s.inputs(), s.inputs()
        want = block(*theirs)
        of_learned = torch.autograd.grad(want.square().sum(), [*theirs, *learned])
        out = fast(*mine)
        assert torch.equal(out, want)
        grow(s.bank)  # between forward and backward: the version of the forward pass counts
        for one, other in zip(torch.autograd.grad(out.square().sum(), [*mine, *learned]), of_learned, strict=True):
            assert torch.equal(one, other)
        with torch.no_grad():
            block(*mine)
    assert counter.frame_count == 1
    del out, want
    gc.collect()
    assert not compiled._tickets


def test_another_bank_is_another_graph_and_never_the_first_bank():
    torch._dynamo.reset()
    one, two = Setting(), Setting(entries=0)
    grow(two.bank)

    def run(bank):
        return mx.torch.attention(one.q, one.k, one.v, memory=bank, top_k=4)

    fast = torch.compile(run, fullgraph=True, backend="aot_eager")
    for bank in (one.bank, two.bank, one.bank):
        assert torch.equal(fast(bank), run(bank))


def test_several_layers_are_one_graph():
    torch._dynamo.reset()
    banks = [Setting().bank for _ in range(10)]
    blocks = torch.nn.ModuleList([Block(bank, "joint", top_k=3) for bank in banks])
    s = Setting()

    def run(q):
        for block in blocks:
            q = block(q, s.k, s.v)
        return q

    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(run, fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(fast(s.q), run(s.q))
            for bank in banks:
                grow(bank)
    assert counter.frame_count == 1


@pytest.mark.parametrize("gradients", [False, True])
def test_point_19_the_operator_keeps_its_promises(gradients):
    s = Setting()
    compiled.sizes(s.bank)
    weight = torch.zeros(HEADS, requires_grad=gradients)
    inputs = [x.requires_grad_(gradients) for x in s.inputs()]
    mask = torch.zeros(N_QUERIES, N_KEYS)
    given = (*inputs, mask, weight, id(s.bank), 4, None, 0, 1, 0, 0.3, False, False, gradients, False)
    checks = torch.library.opcheck(compiled._attend, given)
    assert len(checks) == 4
    assert set(checks.values()) == {"SUCCESS"}


def test_point_19_no_cuda_graph_records_what_a_bank_answers():
    for operator in (compiled._attend, compiled._attend_backward):
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags


def test_wrong_shapes_are_named_while_compiling():
    torch._dynamo.reset()
    s = Setting()
    fast = torch.compile(mx.torch.attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="memory has 2"):
        fast(s.q[:1], s.k[:1], s.v[:1], memory=s.bank, top_k=4)
    with pytest.raises(Exception, match="key_dim"):
        fast(s.q[..., :4], s.k[..., :4], s.v, memory=s.bank, top_k=4)
