"""Gradients, checkpointing, half precision and NaN in an attached model."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, FAMILIES, SDPA, gap, lengths, make, memory_of, tokens  # noqa: E402


def enable_checkpointing(model, how):
    # Early releases of transformers 5 know the old name alone, later ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(how)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_point_09_checkpointing_stages_once_and_reads_one_version_twice(name, reentrant):
    x, text = tokens(2, 14, seed=19), tokens(2, 20, seed=20)
    gradients, losses, sizes = [], [], []
    for checkpointing in (False, True):
        model = make(name)
        model.train()
        with mx.hf.attach(model, memory_of(model), top_k=5, write="all") as a:
            a.ingest(text)
            if checkpointing:
                enable_checkpointing(model, {"use_reentrant": reentrant})
            loss = model(x, labels=x, position_ids=torch.arange(20, 34)[None].expand(2, -1), use_cache=False).loss
            a.commit()
            loss.backward()
            a.commit()
            sizes.append([lengths(a.memory[layer]) for layer in (0, 1)])
            losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert sizes == [[[34, 34]] * 2] * 2
    assert gap(*losses) <= 1e-6
    assert gradients[0].keys() == gradients[1].keys()
    large = [n for n, plain in gradients[0].items() if plain.abs().max() > 1e-8]
    assert len(large) > len(gradients[0]) / 2
    for n in large:
        assert gap(gradients[1][n], gradients[0][n]) <= 1e-4, n


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_those_over_the_concatenation_when_the_past_is_frozen(name):
    model, x = make(name), tokens(1, 24, seed=21)
    with torch.no_grad(), mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :16])
    past = model(x[:, :16], use_cache=True).past_key_values
    for layer in past.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    model(x[:, 16:], past_key_values=past).logits.square().sum().backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    large = [n for n, gradient in want.items() if gradient.abs().max() > 1e-6]
    assert len(large) > len(want) / 2
    model.zero_grad()
    for top_k in (EVERY, 16):
        with mx.hf.attach(model, a.memory, top_k=top_k):
            model(x[:, 16:], position_ids=torch.arange(16, 24)[None], use_cache=False).logits.square().sum().backward()
        for n in large:
            assert gap(model.get_parameter(n).grad, want[n]) <= 1e-3, n
        model.zero_grad()


@pytest.mark.parametrize(("n_layers", "left"), [(1, [8, 7]), (2, [8, 0])])
@torch.no_grad()
def test_a_token_that_is_not_finite_is_left_out_of_every_layer_and_counted(n_layers, left):
    # In the second layer the model itself has spread the NaN over the whole row: 0 * NaN is NaN.
    model, x = make("llama", num_hidden_layers=n_layers), tokens(2, 8, seed=22)
    embeddings = model.get_input_embeddings()(x).clone()
    embeddings[1, 5, 0] = torch.nan
    with mx.hf.attach(model, memory_of(model), top_k=4, write="all") as a:
        model(inputs_embeds=embeddings)
        a.commit()
        assert [lengths(a.memory[i]) for i in a.memory.layers] == [left] * n_layers
        assert a.stats().nonfinite == 16 - sum(left)
        assert a.stats().written == sum(left)
        logits = model(inputs_embeds=embeddings).logits
    assert torch.isfinite(logits[0]).all()
    assert torch.isnan(logits[1, 5]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_point_17_half_precision_models(dtype):
    model, x = make("llama").to(dtype), tokens(1, 40, seed=23)
    want = model(x).logits[:, 28:]
    with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :28])
        got = model(x[:, 28:], position_ids=torch.arange(28, 40)[None]).logits
    assert got.dtype == dtype
    exact = make("llama").to(dtype).float()(x).logits[:, 28:]
    assert gap(got, exact) <= 2 * gap(want, exact) + 1e-3


@torch.no_grad()
def test_point_17_autocast():
    model, x = make("llama"), tokens(1, 40, seed=24)
    want = model(x).logits[:, 28:]
    with torch.autocast("cpu", torch.bfloat16), mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
        a.ingest(x[:, :28])
        got = model(x[:, 28:], position_ids=torch.arange(28, 40)[None]).logits
    assert gap(got, want) <= 0.1


@pytest.mark.parametrize("keys", ["rotated", "plain"])
@torch.no_grad()
def test_a_float64_model_writes_float32_and_gets_float64(keys):
    model, x = make("llama").double(), tokens(1, 40, seed=25)
    want = model(x).logits[:, 28:]
    with mx.hf.attach(model, memory_of(model, keys=keys), top_k=EVERY) as a:
        a.ingest(x[:, :28])
        assert a.memory[0].stats().key_codec == "f32"
        got = model(x[:, 28:], position_ids=torch.arange(28, 40)[None]).logits
        assert got.dtype == torch.float64
        if keys == "rotated":
            assert gap(got, want) <= 1e-6
            cached = model(x, past_key_values=a.cache(window=5)).logits
            assert cached.dtype == torch.float64


@pytest.mark.parametrize("codec", ["auto", "f32"])
@torch.no_grad()
def test_a_memory_begun_under_autocast_is_written_without_it(codec):
    model, x = make("llama"), tokens(1, 30, seed=26)
    with mx.hf.attach(model, memory_of(model, key_codec=codec), top_k=EVERY, write="all") as a:
        with torch.autocast("cpu", torch.bfloat16):
            a.ingest(x[:, :10])
        before = a.memory[0].stats()
        assert before.value_codec == "bf16"
        model(x[:, 10:20], position_ids=torch.arange(10, 20)[None])
        a.commit()
        assert (a.memory[0].stats().key_codec, a.memory[0].stats().value_codec) == (before.key_codec, "bf16")
        assert lengths(a.memory[0]) == lengths(a.memory[1]) == [20]


@torch.no_grad()
def test_a_key_beyond_what_the_bank_took_is_left_out_of_every_layer():
    model, x = make("llama").half(), tokens(1, 8, seed=27)
    with mx.hf.attach(model, memory_of(model), top_k=4, write="all") as a:
        a.ingest(x)
        model.float().model.layers[1].self_attn.v_proj.weight.mul_(1e7)
        model(x, use_cache=False)
        a.commit()
        assert lengths(a.memory[0]) == lengths(a.memory[1])
        assert a.stats().nonfinite == 16 - lengths(a.memory[0])[0] > 0


@torch.no_grad()
def test_staging_that_fails_halfway_leaves_nothing_of_its_pass(monkeypatch):
    model, x = make("llama"), tokens(2, 4, seed=29)
    with mx.hf.attach(model, memory_of(model), write="all") as a:
        model(x, use_cache=False)
        stage, failing = mx.Bank.stage, a.memory[0]

        def fails_in_the_first_layer(bank, *args, **how):
            if bank is failing:
                raise KeyboardInterrupt
            return stage(bank, *args, **how)

        monkeypatch.setattr(mx.Bank, "stage", fails_in_the_first_layer)
        with pytest.raises(KeyboardInterrupt):
            model(x, use_cache=False)
        monkeypatch.undo()
        assert (model(x, use_cache=False) and a.staged[0]).tolist() == [4, 5, 6, 7]
        a.commit()
        assert lengths(a.memory[0]) == lengths(a.memory[1]) == [8, 8]


@pytest.mark.parametrize("name", SDPA)
def test_training_with_dropout_runs(name):
    model = make(name, **({"attn_pdrop": 0.3} if name == "gpt2" else {"attention_dropout": 0.3})).train()
    x = tokens(2, 12, seed=28)
    with mx.hf.attach(model, memory_of(model), top_k=4, write="all") as a:
        for _ in range(2):
            loss = model(x, labels=x, use_cache=False).loss
            loss.backward()
            a.commit()
        assert torch.isfinite(loss)
        assert lengths(a.memory[0]) == [24, 24]
