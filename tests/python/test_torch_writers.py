"""What attached PyTorch modules write: types that the bank did not begin with, and failures halfway."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from torch import nn  # noqa: E402

import mnemex as mx  # noqa: E402
from attention_setting import gauss  # noqa: E402

ROWS, N, HEADS, DIM = 2, 5, 4, 8
WIDTH = HEADS * DIM


class Layers(nn.Module):
    """Attention, twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2))

    def forward(self, x, pads=None):
        for layer in (self.one, self.two):
            x = x + layer(x, x, x, key_padding_mask=pads)[0]
        return x


def memory():
    return mx.Memory({i: mx.Bank(rows=ROWS, heads=HEADS, key_dim=DIM, value_dim=DIM) for i in range(2)})


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float16, torch.float32])
@torch.no_grad()
def test_a_model_writes_in_any_type_to_what_the_bank_began_with(first):
    model, x = Layers(), gauss(ROWS, N, WIDTH)
    with mx.torch.attach(model, memory(), write="all") as a:
        for dtype in (first, torch.float32, torch.float64, torch.bfloat16, torch.float16):
            assert model.to(dtype)(x.to(dtype)).dtype == dtype
            a.commit()
    name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[first]
    for layer in a.memory.layers:
        assert a.memory[layer].stats().key_codec == a.memory[layer].stats().value_codec == name
        assert a.memory[layer].lengths.tolist() == [[5 * N] * HEADS] * ROWS


@torch.no_grad()
def test_staging_that_fails_halfway_leaves_nothing_of_its_pass_and_all_of_those_before(monkeypatch):
    model, x = Layers(), gauss(ROWS, N, WIDTH)
    pads = torch.tensor([[False] * N, [True] * N])
    with mx.torch.attach(model, memory(), write="all") as a:
        model(x)
        stage, failing = mx.Bank.stage, a.memory[1]

        def fails_in_the_second(bank, *args, **how):
            if bank is failing:
                raise mx.CapacityError("no room")
            return stage(bank, *args, **how)

        for given in (None, pads):
            monkeypatch.setattr(mx.Bank, "stage", fails_in_the_second)
            with pytest.raises(mx.CapacityError, match="no room"):
                model(x, given)
            monkeypatch.undo()
        a.commit()
        model(x)
        ids = [receipt.ids for receipt in a.commit()]
    for of_layer in ids:
        assert of_layer[0].tolist() == [list(range(N, 2 * N))] * ROWS
