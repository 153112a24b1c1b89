"""Pairs that local tokens look up for each other, in models: rotated keys, pads, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import hf_plain  # noqa: E402
import mnemex as mx  # noqa: E402
import plain_adapters as plain  # noqa: E402
from hf_models import gap, left_padded, make, memory_of, tokens  # noqa: E402


def written(model, text, **how):
    memory = memory_of(model, **how)
    with torch.no_grad(), mx.hf.attach(model, memory) as a:
        a.ingest(text, chunk=text.shape[1])
    return memory


@pytest.mark.parametrize("n", [1, 3])
@torch.no_grad()
def test_rotated_keys_are_looked_up_and_read_where_they_stand(n):
    model, text, prompt = make("llama"), tokens(2, 12), tokens(2, 7, seed=1)
    memory, stored = written(model, text), {}

    def note(layer, q, k, v, turn):
        stored[layer] = turn(k), v
        return hf_plain.alone(layer, q, k, v, turn)

    hf_plain.llama(model, text, note)

    def attend(layer, q, k, v, turn):
        far = plain.nearest(turn(k), *stored[layer], n, plain.dot)
        return plain.prepended(turn(q), turn(k), v, turn(q), *far, hf_plain.causal(7), q.shape[-1] ** -0.5)

    with mx.hf.attach(model, memory, top_k=mx.Shared(n)) as a:
        at = a.next_position + torch.arange(7)[None]
        got = model(prompt, position_ids=at, use_cache=False).logits
    assert gap(got, hf_plain.llama(model, prompt, attend, start=12)) < 2e-5


@torch.no_grad()
def test_pads_look_nothing_up_for_others():
    model, text = make("llama"), tokens(2, 12)
    memory = written(model, text)
    padded = left_padded([3, 0], 9)
    alone = padded["input_ids"][:1, 3:]
    with mx.hf.attach(model, memory, top_k=mx.Shared(2)):
        together = model(**padded, position_ids=torch.tensor([[0] * 3 + list(range(6)), list(range(9))])).logits
    first = written(model, text[:1])
    with mx.hf.attach(model, first, top_k=mx.Shared(2)):
        assert gap(together[:1, 3:], model(alone, position_ids=torch.arange(6)[None]).logits) < 2e-5


@torch.no_grad()
def test_a_cache_of_rotated_keys_reads_and_plain_ones_are_refused():
    model, prompt = make("llama"), tokens(1, 6)
    rotated, plainly = (written(model, tokens(1, 12), keys=keys) for keys in ("rotated", "plain"))
    with mx.hf.attach(model, rotated, top_k=mx.Shared(1)) as a:
        first = model(prompt, position_ids=a.next_position + torch.arange(6)[None], use_cache=True)
        second = model(
            prompt[:, :1], position_ids=a.next_position + torch.tensor([[6]]), past_key_values=first.past_key_values
        )
        whole = torch.cat([prompt, prompt[:, :1]], 1)
        want = model(whole, position_ids=a.next_position + torch.arange(7)[None], use_cache=False).logits
    assert gap(second.logits[:, -1], want[:, -1]) < 2e-5
    with mx.hf.attach(model, plainly, top_k=mx.Shared(1)):
        first = model(prompt, use_cache=True)
        with pytest.raises(mx.Unsupported, match="segment by segment with use_cache=False"):
            model(prompt[:, :1], past_key_values=first.past_key_values)
    with pytest.raises(mx.Unsupported, match="leave trace out"):
        mx.hf.attach(model, rotated, top_k=mx.Shared(1), trace=True)


@torch.no_grad()
def test_plain_modules_read_them_too():
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    bank = mx.Bank(rows=3, heads=2, key_dim=8, value_dim=8)
    bank.write(*torch.randn(2, 3, 2, 9, 8))
    x = torch.randn(3, 5, 16)
    mask = ~hf_plain.causal(5)
    with mx.torch.attach(layer, bank, top_k=mx.Shared(1)):
        got, _ = layer(x, x, x, attn_mask=mask, need_weights=False)
    q, k, v = (
        y.unflatten(-1, (2, 8)).transpose(1, 2)
        for y in torch.nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    )
    out = mx.torch.attention(q, k, v, memory=bank, top_k=mx.Shared(1), is_causal=True)
    torch.testing.assert_close(got, layer.out_proj(out.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-5)
