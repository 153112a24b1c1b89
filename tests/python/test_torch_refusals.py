"""Wrong arguments of the PyTorch adapter are errors of mnemex that name them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from torch import nn  # noqa: E402

import mnemex as mx  # noqa: E402
from attention_setting import DIM, HEADS, Setting  # noqa: E402

WRONG_ANYWHERE = [
    {"top_k": True}, {"top_k": 2**70}, {"top_k": 0}, {"top_k": 2.5}, {"top_k": "a"}, {"merge": mx.torch.Gate},
    {"merge": None}, {"merge": torch.zeros(HEADS)},
]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        *WRONG_ANYWHERE, {"memory": None}, {"memory": mx.Memory({0: mx.Bank(key_dim=4)})}, {"k": None},
        {"q": np.zeros((2, 4, 5, 8))}, {"v": [1]}, {"scale": "a"}, {"scale": torch.nan},
        {"attn_mask": np.ones((5, 6), bool)}, {"is_causal": "no"},
    ],
    ids=lambda wrong: str(wrong)[:30],
)  # fmt: skip
def test_wrong_arguments_of_attention_are_named(wrong):
    s = Setting()
    with pytest.raises(mx.Error, match=f"^{next(iter(wrong))}(=| is)"):
        mx.torch.attention(**{"q": s.q, "k": s.k, "v": s.v, "memory": s.bank, "top_k": 3, **wrong})


def test_numbers_of_other_libraries_are_numbers():
    s = Setting()
    given = {"memory": s.bank, "attn_mask": None}
    want = mx.torch.attention(s.q, s.k, s.v, top_k=3, scale=0.5, **given)
    assert torch.equal(mx.torch.attention(s.q, s.k, s.v, top_k=np.int64(3), scale=torch.tensor(0.5), **given), want)


@pytest.mark.parametrize(
    "wrong",
    [
        *WRONG_ANYWHERE, {"memory": None}, {"memory": 3}, {"memory": mx.Bank(key_dim=DIM).snapshot()}, {"model": 3},
        {"modules": "self_attn"}, {"modules": 3}, {"write": 3}, {"merge": mx.torch.Gate(HEADS + 1)},
    ],
    ids=lambda wrong: str(wrong)[:30],
)  # fmt: skip
def test_wrong_arguments_of_attach_are_named(wrong):
    module = nn.MultiheadAttention(HEADS * DIM, HEADS)
    bank = mx.Bank(heads=HEADS, key_dim=DIM, value_dim=DIM)
    with pytest.raises(mx.Error, match=f"^{next(iter(wrong))}(=| is| has)"):
        mx.torch.attach(**{"model": module, "memory": bank, **wrong})
    mx.torch.attach(module, bank).detach()


@pytest.mark.parametrize("heads", [-1, 0, 2.5, True, 2**70, "4"])
@pytest.mark.parametrize("merge", [mx.torch.Bias, mx.torch.Gate])
def test_a_merge_of_no_number_of_heads(merge, heads):
    with pytest.raises(mx.Error, match="heads="):
        merge(heads)


def test_a_gate_that_starts_nowhere():
    for init in ("a", torch.nan):
        with pytest.raises(mx.Error, match="init="):
            mx.torch.Gate(2, init=init)
