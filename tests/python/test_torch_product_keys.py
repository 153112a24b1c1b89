"""The trainable layer of product-key memories: what it reads, its options, what it refuses, and how it is trained."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from product_parts import plain_bag, plain_lookup  # noqa: E402

NAN, INF = float("nan"), float("inf")


def make(dim=6, n_keys=4, *, seed=0, **options):
    torch.manual_seed(seed)
    return mx.torch.ProductKeyMemory(dim, n_keys, **{"heads": 2, "k": 3, "key_dim": 5, **options})


def defined(memory, x):
    """Read as the paper says, from the layer's parameters, in float64."""
    parameters = {name: p.detach().double() for name, p in memory.state_dict().items()}
    x = x.detach().double().reshape(-1, memory.dim)
    queries = x @ parameters["query.weight"].T + parameters["query.bias"]
    if "norm.weight" in parameters:
        centred = queries - parameters["norm.running_mean"]
        scaled = centred / (parameters["norm.running_var"] + memory.norm.eps).sqrt()
        queries = scaled * parameters["norm.weight"] + parameters["norm.bias"]
    queries = queries.reshape(len(x), memory.heads, memory.key_dim)
    scores, ids = (torch.from_numpy(found) for found in plain_lookup(
        parameters["rows"], parameters["columns"], queries, memory.k
    ))  # fmt: skip
    weights = scores.softmax(-1) if memory.softmax else torch.where(ids < 0, 0, scores)
    values = parameters["values.weight"]
    rows = torch.where(ids < 0, ids, ids % len(values)).flatten(1)
    out = torch.from_numpy(plain_bag(values.numpy(), rows.numpy(), weights.flatten(1).numpy()))
    if memory.gate is not None:
        out = (out * torch.nn.functional.silu(x @ parameters["gate.weight"].T)) @ parameters["out.weight"].T
    return out


OPTIONS = {
    "as it is": {},
    "odd widths": {"dim": 7, "n_keys": 5, "key_dim": 3},
    "more k than keys": {"n_keys": 3, "k": 7},
    "more k than slots": {"n_keys": 2, "k": 6},
    "fewer values": {"values": 7},
    "batch norm": {"batch_norm": True},
    "scores": {"softmax": False, "k": 20},
    "gated": {"gated": True, "value_dim": 9, "values": 5},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_it_reads_what_the_paper_says(options):
    memory = make(**OPTIONS[options])
    x = torch.randn(5, 3, memory.dim)
    if memory.norm is not None:
        memory(x)
    memory.eval()
    want = defined(memory, x)
    for layer, given in ((memory, x), (copy.deepcopy(memory).double(), x.double())):
        out = layer(given)
        assert out.shape == x.shape
        assert out.dtype == given.dtype
        torch.testing.assert_close(out.double().reshape(want.shape), want, rtol=1e-5, atol=1e-5)


def test_both_paths_read_the_same_slots():
    memory = make(n_keys=9, k=8)
    slots, weights = memory.lookup(x := torch.randn(40, 6))
    queries = memory.query(x).detach()
    plain = mx.torch.product_plain.lookup(memory.rows, memory.columns, queries.unflatten(-1, (2, 5)), 8)
    assert torch.equal(slots, plain.ids.flatten(1))
    assert torch.equal(weights, plain.scores.softmax(-1).flatten(1))


def test_equal_keys_tie_by_slot():
    for dtype in (torch.float32, torch.float64):
        memory = make(n_keys=3, k=5).to(dtype)
        with torch.no_grad():
            memory.rows.fill_(0.25)
            memory.columns.fill_(0.5)
        slots, weights = memory.lookup(torch.randn(4, 6, dtype=dtype))
        assert (slots.unflatten(-1, (2, 5)) == torch.arange(5)).all()
        torch.testing.assert_close(weights, torch.full_like(weights, 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("gated", [False, True])
def test_a_bad_token_is_nan_alone_and_teaches_nothing(bad, gated, dtype):
    memory = make(gated=gated).to(dtype)
    x = torch.randn(2, 3, 6, dtype=dtype)
    want = memory(x).detach()
    x[1, 2, 0] = bad
    out = memory(x.requires_grad_())
    assert torch.isnan(out[1, 2]).all()
    assert torch.equal(out.detach().flatten(0, 1)[:5], want.flatten(0, 1)[:5])
    out.flatten(0, 1)[:5].sum().backward()
    assert memory.values.weight.grad.coalesce().values().isfinite().all()
    assert memory.rows.grad.isfinite().all()
    slots, weights = memory.lookup(x)
    assert (slots[1, 2] == -1).all()
    assert (weights[1, 2] == 0).all()


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bad_token_spoils_no_statistics(bad, dtype):
    memory, x = make(batch_norm=True).to(dtype), torch.randn(5, 6, dtype=dtype)
    x[2, 0] = bad
    for _ in ("training", "eval"):
        assert memory(x).isnan().any(-1).tolist() == [False, False, True, False, False]
        assert (memory.lookup(x)[0] >= 0).all(-1).tolist() == [True, True, False, True, True]
        assert memory.norm.running_mean.isfinite().all()
        assert memory.norm.running_var.isfinite().all()
        memory.eval()
    zeros = make(batch_norm=True).to(dtype)
    queries = torch.where(memory.query(x).isfinite(), memory.query(x), 0)
    zeros.norm(queries)
    torch.testing.assert_close(memory.norm.running_mean, zeros.norm.running_mean)
    torch.testing.assert_close(memory.norm.running_var, zeros.norm.running_var)


def test_looking_changes_no_statistics():
    memory, x = make(batch_norm=True, softmax=False), torch.randn(5, 6)
    before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
    slots, weights = memory.lookup(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in memory.named_buffers())
    torch.testing.assert_close(memory.values(slots, weights), memory(x))  # what training reads
    assert memory.norm.num_batches_tracked == 1


def test_one_token_is_no_batch():
    memory = make(batch_norm=True)
    for x in (torch.randn(6), torch.randn(1, 1, 6)):
        for run in (memory, memory.lookup):
            with pytest.raises(mx.ShapeError, match=r"single token.*call eval\(\)"):
                run(x)
    memory.eval()
    assert memory(torch.randn(6)).shape == (6,)


def test_no_tokens_are_no_output():
    memory = make()
    out = memory(torch.empty(2, 0, 6, requires_grad=True))
    assert out.shape == (2, 0, 6)
    out.sum().backward()
    assert memory(torch.randn(6)).shape == (6,)


def test_layers_that_share_a_table_add_their_gradients():
    table = mx.torch.ValueTable(11, 6)
    first, second = make(values=table, seed=1), make(values=table, seed=2)
    model = torch.nn.ModuleList([first, second])
    values, others = mx.torch.split_values(model)
    assert values == [table.weight]
    assert len(others) == len(list(model.parameters())) - 1 == 8
    x = torch.randn(7, 6)
    alone = [torch.autograd.grad(layer(x).sum(), table.weight)[0].to_dense() for layer in model]
    (first(x).sum() + second(x).sum()).backward()
    assert table.weight.grad.layout == torch.sparse_coo
    torch.testing.assert_close(table.weight.grad.to_dense(), sum(alone))
    (first(x).sum()).backward()
    torch.testing.assert_close(table.weight.grad.to_dense(), sum(alone) + alone[0])
    twin = copy.deepcopy(model)
    assert twin[0].values is twin[1].values
    assert twin[0].values is not table


def test_sparse_adam_moves_only_the_rows_that_were_read():
    memory = make(n_keys=8)
    values, others = mx.torch.split_values(memory)
    optimizers = torch.optim.SparseAdam(values, lr=1e-3), torch.optim.AdamW(others, lr=1e-2)
    x, before = torch.randn(3, 6), memory.values.weight.detach().clone()
    read = memory.lookup(x)[0].unique()
    for _ in range(3):
        loss = memory(x).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        read = torch.cat([read, memory.lookup(x)[0].unique()]).unique()
    moved = (memory.values.weight != before).any(-1).nonzero().squeeze(-1)
    assert set(moved.tolist()) <= set(read.tolist())
    assert len(moved) > 0
    assert memory(x).square().mean() < loss


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant):
    memory, x = make(), torch.randn(7, 6, requires_grad=True)
    want = torch.autograd.grad(memory(x).square().sum(), [x, *memory.parameters()])
    out = torch.utils.checkpoint.checkpoint(memory, x, use_reentrant=reentrant)
    out.square().sum().backward()
    for one, other in zip([x, *memory.parameters()], want, strict=True):
        assert torch.equal(one.grad.to_dense(), other.to_dense())


def test_usage_is_the_share_of_slots_with_weight_and_the_distance_from_uniform():
    memory = make(n_keys=3, k=2, track_usage=True)
    assert memory.usage().share == 0
    assert math.isnan(memory.usage().kl)
    for part in torch.randn(4, 5, 6):
        memory.reset_usage()
        memory(part)
        slots, weights = memory.lookup(part)  # which counts nothing
    mass = np.zeros(9)
    np.add.at(mass, slots.flatten().numpy(), weights.detach().flatten().double().numpy())
    np.testing.assert_allclose(memory.mass, mass, rtol=1e-12)
    assert memory.hits.tolist() == torch.bincount(slots.flatten(), minlength=9).tolist()
    z = mass[mass > 0] / mass.sum()
    assert memory.usage().share == (mass > 0).mean()
    assert memory.usage().kl == pytest.approx(math.log(9) + (z * np.log(z)).sum(), abs=1e-12)
    memory.mass.fill_(1.0)
    assert memory.usage() == pytest.approx((1, 0), abs=1e-12)
    with pytest.raises(mx.StateError, match="track_usage=True"):
        make().usage()


def test_it_is_saved_and_opened_and_moved_as_any_module():
    memory = make(batch_norm=True, gated=True, value_dim=3, values=5, track_usage=True)
    assert set(memory.state_dict()) == {
        "rows", "columns", "query.weight", "query.bias", "values.weight", "gate.weight", "out.weight",
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    twin = make(batch_norm=True, gated=True, value_dim=3, values=5, seed=7)
    twin.load_state_dict(memory.state_dict())
    file = io.BytesIO()
    torch.save(memory, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    x = torch.randn(4, 6)
    for layer in (memory, twin, whole):
        layer.eval()
    assert torch.equal(memory(x), twin(x))
    assert torch.equal(memory(x), whole(x))
    assert memory.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert memory.mass.dtype == torch.float64
    with torch.device("meta"):
        assert make().values.weight.is_meta


@pytest.mark.parametrize(("gated", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_autocast_works(gated, dtype):
    memory, x = make(gated=gated), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = memory(x)
    assert out.dtype == dtype  # the gate's last projection is autocast's
    torch.testing.assert_close(out.float(), memory(x), rtol=0.1, atol=0.1)


REFUSED = {
    "a dim of 0": ({"dim": 0}, "dim=0"),
    "no keys": ({"n_keys": 0}, "n_keys=0"),
    "half a head": ({"heads": 0.5}, "heads=0.5"),
    "no k": ({"k": 0}, "k=0"),
    "a key_dim of 1": ({"key_dim": 1}, "key_dim=1"),
    "a word for softmax": ({"softmax": "no"}, "softmax='no'"),
    "a width that does not fit": ({"value_dim": 5}, "gated=True"),
    "values of a list": ({"values": [1]}, "values=|n_values="),
    "values of a module": ({"values": torch.nn.Linear(2, 2)}, "expected a ValueTable"),
    "a table and another width": ({"values": mx.torch.ValueTable(4, 6), "value_dim": 5}, "leave value_dim out"),
    "a word for a flag": ({"batch_norm": "yes"}, "batch_norm='yes'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what):
    options, message = REFUSED[what]
    with pytest.raises(mx.Error, match=message):
        make(**options)


def test_it_refuses_inputs_that_do_not_fit():
    memory = make()
    with pytest.raises(mx.ShapeError, match=r"expected \[\.\.\., 6\]"):
        memory(torch.randn(2, 5))
    with pytest.raises(mx.ShapeError, match="expected"):
        memory(torch.tensor(1.0))
    with pytest.raises(mx.DtypeError, match="x is a list"):
        memory([1.0])
    with pytest.raises(mx.ShapeError, match="slots"):
        memory.values(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4))
    for slots in (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)):
        with pytest.raises(mx.DtypeError, match="slots are torch"):
            memory.values(slots, torch.zeros(2, 3))
    for table in (memory.values, copy.deepcopy(memory.values).double()):
        with pytest.raises(mx.errors.IdError, match="row -2"):
            table(torch.tensor([[0, -2]]), torch.ones(1, 2))


def test_arrays_are_looked_up_as_the_layer_does():
    memory = make(dim=6, n_keys=12, heads=3, k=5, key_dim=9)
    x = torch.randn(7, 6)
    slots, weights = memory.lookup(x)
    queries = memory.query(x).detach().reshape(7, 3, 9)
    keys = mx.ProductKeys((memory.rows, memory.columns), memory.values.weight)
    scores, ids = keys.lookup(queries, 5)
    np.testing.assert_array_equal(ids.reshape(7, 15), slots.numpy())
    np.testing.assert_allclose(torch.from_numpy(scores).softmax(-1).reshape(7, 15), weights.detach(), rtol=1e-6)
    np.testing.assert_allclose(keys.read(queries, 5), memory(x).detach(), rtol=1e-5, atol=1e-6)
