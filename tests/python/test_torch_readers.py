"""Readers in the PyTorch adapters: joint attention over what they take, its gradients, and graphs of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mnemex as mx
import mnemex.torch

BATCH, HEADS, GROUP, TOKENS, DIM = 2, 2, 2, 4, 6
READERS = [mx.TopK(5), mx.Threshold(0.5, 20), mx.Window(4), mx.Window(3, 2, 1), mx.Window(50, 1, 1)]


def setting(dtype=torch.float32, n=40):
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, HEADS * GROUP, TOKENS, DIM), *[(BATCH, HEADS, TOKENS, DIM)] * 2, *[(BATCH, HEADS, n, DIM)] * 2]
    q, k, v, *stored = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    bank = mx.Bank(rows=BATCH, heads=HEADS, key_dim=DIM, value_dim=DIM)
    if n:
        bank.write(*(x.float() for x in stored))
        bank.delete([3, 17, 18], rows=[1])
    return q, k, v, bank


def plain(q, k, v, bank, reader):
    """Attention over local tokens and the distinct entries that a search takes, in PyTorch alone."""
    found = bank.search(q.detach().float(), reader)
    keys, values = (torch.from_numpy(x).to(q.dtype) for x in bank.gather(found))
    k, v = (x.repeat_interleave(GROUP, 1) for x in (k, v))
    logits = torch.cat([q @ k.transpose(-1, -2), torch.einsum("bhtd,bhtkd->bhtk", q, keys)], -1) * DIM**-0.5
    hidden = torch.cat([torch.zeros(*q.shape[:3], TOKENS, dtype=torch.bool), torch.from_numpy(~found.distinct)], -1)
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return weights[..., :TOKENS] @ v + torch.einsum("bhtk,bhtkd->bhtd", weights[..., TOKENS:], values)


@pytest.mark.parametrize("reader", READERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_attention_and_its_gradients_are_those_of_the_distinct_entries(reader, dtype):
    *local, bank = setting(dtype)
    told = []
    for attend in (lambda *x: mx.torch.attention(*x, memory=bank, top_k=reader), lambda *x: plain(*x, bank, reader)):
        inputs = [x.clone().requires_grad_() for x in local]
        out = attend(*inputs)
        out.square().sum().backward()
        told.append([out.detach(), *(x.grad for x in inputs)])
        with torch.no_grad():
            told[-1].append(attend(*inputs))
    for got, want in zip(*told, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("reader", [mx.Threshold(0.5, 20), mx.Window(3, 2, 1)], ids=repr)
def test_gradients_pass_the_check_by_differences(reader):
    q, k, v, bank = setting(torch.float64)
    q, k, v = (x[:, :, :2].requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: mx.torch.attention(*x, memory=bank, top_k=reader), (q, k, v))


def test_a_threshold_that_nothing_reaches_leaves_local_attention():
    for n in (0, 40):
        q, k, v, bank = setting(n=n)
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        got = mx.torch.attention(q, k, v, memory=bank, top_k=mx.Threshold(1e9, 5))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reader", [mx.TopK(5), mx.Threshold(0.5, 20), mx.Window(3, 2, 1)], ids=repr)
def test_a_graph_holds_a_reader(reader):
    q, k, v, bank = setting()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def read(q, k, v):
        return mx.torch.attention(q, k, v, memory=bank, top_k=reader) * 2

    for _ in range(2):
        torch.testing.assert_close(read(q, k, v), mx.torch.attention(q, k, v, memory=bank, top_k=reader) * 2)
        bank.write(*(x[:, :HEADS].contiguous() for x in (k, v)))
    inputs = [[x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2)]
    read(*inputs[0]).sum().backward()
    (mx.torch.attention(*inputs[1], memory=bank, top_k=reader) * 2).sum().backward()
    for got, want in zip(*inputs, strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_a_plain_module_reads_through_a_window():
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(12, 2, batch_first=True).eval()
    x = torch.randn(1, 5, 12)
    out = []
    for reader in (mx.Window(3, 1, 1), mx.TopK(3), None):
        bank = mx.Bank(heads=2, key_dim=6, value_dim=6)
        with mx.torch.attach(module, bank, top_k=reader, write="all") as attachment:
            module(x, x, x, need_weights=False)
            attachment.commit()
            out.append(module(x, x, x, need_weights=False)[0].detach())
    assert not torch.equal(out[0], out[1])
    assert np.isfinite(out[0].numpy()).all()


def test_what_is_no_reader_is_refused_by_name():
    q, k, v, bank = setting()
    for wrong in (0, 2.5, "window", mx.Window, mx.Flat()):
        with pytest.raises(mx.Error, match=r"top_k=.*Window"):
            mx.torch.attention(q, k, v, memory=bank, top_k=wrong)


def test_a_language_model_reads_through_a_window_and_traces_each_entry_once():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    memory = mx.Memory.for_model(model)
    text = torch.randint(0, 50, (1, 30))
    with torch.no_grad(), mx.hf.attach(model, memory, top_k=mx.Window(3, 1, 1), trace=True) as attachment:
        attachment.ingest(text)
        start = attachment.next_position
        model(text[:, :6], position_ids=torch.arange(start, start + 6)[None])
        for layer in attachment.trace.values():
            assert layer.ids.shape == layer.mass.shape == (1, 4, 6, 9)
            hits = mx.Hits(layer.mass, layer.ids, np.zeros(1, np.int64))
            assert hits.distinct.sum() < hits.valid.sum()
            assert not layer.mass[~hits.distinct].any()
            np.testing.assert_allclose(layer.mass.sum(-1), 1, atol=1e-5)
        assert attachment.citations()
