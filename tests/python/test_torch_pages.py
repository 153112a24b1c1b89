"""Whole pages in attention over local tokens and a memory: values, gradients, graphs, and a model that generates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mnemex as mx
import mnemex.torch

BATCH, HEADS, GROUP, TOKENS, DIM = 2, 2, 2, 4, 6
READERS = [mx.Blocks(2), mx.Blocks(2, 1), mx.Blocks(1, shared=True), mx.Blocks(3, 1, shared=True), mx.Blocks(50)]


def setting(dtype=torch.float32, n=40):
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, HEADS * GROUP, TOKENS, DIM), *[(BATCH, HEADS, TOKENS, DIM)] * 2, *[(BATCH, HEADS, n, DIM)] * 2]
    q, k, v, *stored = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    bank = mx.Bank(rows=BATCH, heads=HEADS, key_dim=DIM, value_dim=DIM, write=mx.Pages(7))
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
def test_attention_and_its_gradients_are_those_of_the_pages(reader, dtype):
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


@pytest.mark.parametrize("reader", READERS[1:4], ids=repr)
def test_a_graph_holds_a_reader_of_pages(reader):
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


def tiny_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def test_a_model_that_reads_all_pages_generates_as_without_a_window():
    model = tiny_llama()
    text = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    want = model.generate(text, max_new_tokens=12, do_sample=False, pad_token_id=0)
    for reader in (mx.Blocks(10**6), mx.Blocks(10**6, 1, shared=True)):
        memory = mx.Memory.for_model(model, write=mx.Pages(size=8))
        with mx.hf.attach(model, memory, top_k=reader) as attachment:
            cache = attachment.cache(window=8, sinks=2)
            got = model.generate(text, past_key_values=cache, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert got.tolist() == want.tolist()
        assert len(memory[0]) > 0


def test_a_model_reads_few_pages_and_tells_which():
    model = tiny_llama()
    memory = mx.Memory.for_model(model, write=mx.Pages(size=8))
    text = torch.randint(0, 50, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), mx.hf.attach(model, memory, top_k=mx.Blocks(2, 1, shared=True), trace=True) as attachment:
        attachment.ingest(text)
        start = attachment.next_position
        out = model(text[:, :6], position_ids=torch.arange(start, start + 6)[None])
        assert torch.isfinite(out.logits).all()
        for layer in attachment.trace.values():
            assert layer.ids.shape == layer.mass.shape == (1, 4, 6, 48)
            np.testing.assert_allclose(layer.mass.sum(-1), 1, atol=1e-5)
            for lane in range(2):
                # The queries of a lane read the same pages.
                assert len({tuple(ids) for ids in layer.ids[0, 2 * lane : 2 * lane + 2].reshape(-1, 48).tolist()}) == 1
        generated = model.generate(text[:, :6], max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert generated.shape == (1, 11)
