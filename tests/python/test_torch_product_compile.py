"""torch.compile(fullgraph=True) of product-key memory: one graph, the same numbers, sparse gradients."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import mnemex as mx  # noqa: E402
from mnemex.torch import product_ops  # noqa: E402

# A port is no leaf. PyTorch hides this warning while it compiles, but not from those who make errors of warnings.
# The other one Inductor gives when it is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

WIDTH = 6


class Model(torch.nn.Module):
    """Layers with residuals and projections, which compilers rewrite; memories that share a table."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.wide = torch.nn.Linear(WIDTH, WIDTH)
        first = mx.torch.ProductKeyMemory(WIDTH, 4, heads=2, k=3, key_dim=5, **options)
        second = mx.torch.ProductKeyMemory(WIDTH, 3, heads=2, k=4, key_dim=4, values=first.values)
        self.memories = torch.nn.ModuleList([first, second])

    def forward(self, x):
        for memory in (*self.memories, self.memories[0]):  # one of them twice
            x = x + memory(x)
            x = torch.relu(self.wide(x)) + x
        return x


def trained(run, model, xs, *, every):
    values, others = mx.torch.split_values(model)
    optimizers = torch.optim.SparseAdam(values, lr=1e-2), torch.optim.Adam(others, lr=1e-2)
    for step, x in enumerate(xs):
        run(x).square().sum().backward()
        assert values[0].grad.layout == torch.sparse_coo
        if step % every == every - 1:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"track_usage": True}, {"batch_norm": True}, {"gated": True, "values": 5}])
def test_training_is_one_graph_and_gives_the_numbers_of_eager_mode(options, dtype):
    torch._dynamo.reset()
    model, twin = Model(**options).to(dtype), Model(**options).to(dtype)
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(twin, fullgraph=True, backend=counter)
    xs = torch.randn(6, 7, WIDTH, dtype=dtype)
    want, got = trained(model, model, xs, every=2), trained(fast, twin, xs, every=2)  # two passes add up before a step
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1
    assert not product_ops._aside
    with torch.no_grad():
        torch.testing.assert_close(fast(xs[0]), model(xs[0]), rtol=1e-5, atol=1e-5)
    if "track_usage" in options:
        assert torch.equal(model.memories[0].hits, twin.memories[0].hits)


FROZEN = ("nothing", "values", "all but values")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a compiler of C++")
COMPILED = [
    *(("aot_eager", frozen, checkpointed) for frozen in FROZEN for checkpointed in (False, True)),
    *(pytest.param("inductor", frozen, False, marks=needs_compiler) for frozen in FROZEN),
]


@pytest.mark.parametrize(("backend", "frozen", "checkpointed"), COMPILED)
def test_a_graph_gives_every_gradient_that_is_asked_for(backend, frozen, checkpointed):
    torch._dynamo.reset()
    model = Model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen == "nothing" or (frozen == "values") != name.endswith("values.weight"))
    learned = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(7, WIDTH)
    model(x).square().sum().backward()
    want = [p.grad.to_dense() for p in learned]

    def run(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)

    fast = torch.compile(run, fullgraph=True, backend=backend)
    model.zero_grad()
    fast(x).square().sum().backward()
    for parameter, other in zip(learned, want, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), other, rtol=1e-4, atol=1e-5)
    got = torch.autograd.grad(fast(x).square().sum(), learned)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.to_dense(), other, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_nobody_asked_for_goes_nowhere():
    torch._dynamo.reset()
    model, x = Model(), torch.randn(7, WIDTH, requires_grad=True)
    table = model.memories[0].values.weight
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(model(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(fast(x).sum(), x)[0], want)
    assert table.grad is None
    assert not product_ops._aside
    seen = []
    table.register_hook(lambda grad: seen.append(grad.layout))
    fast(x).sum().backward()
    once = table.grad.to_dense()
    fast(x).sum().backward()
    torch.testing.assert_close(table.grad.to_dense(), 2 * once)
    assert seen == [torch.sparse_coo] * 2


def test_a_table_whose_parameter_was_replaced_still_learns():
    torch._dynamo.reset()
    memory, x = mx.torch.ProductKeyMemory(WIDTH, 4, heads=2, k=3, key_dim=5), torch.randn(7, WIDTH)
    other = mx.torch.ProductKeyMemory(WIDTH, 4, heads=2, k=3, key_dim=5)
    memory.load_state_dict(other.state_dict(), assign=True)
    for _ in range(2):
        memory.zero_grad()
        other.zero_grad()
        torch.compile(memory, fullgraph=True, backend="aot_eager")(x).sum().backward()
        other(x).sum().backward()
        torch.testing.assert_close(memory.values.weight.grad.to_dense(), other.values.weight.grad.to_dense())
        memory(x)  # outside of a graph the table finds out


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}])
def test_a_bad_token_is_nan_alone_in_a_graph_too(options):
    torch._dynamo.reset()
    model = mx.torch.ProductKeyMemory(WIDTH, 4, gated=True, values=5, **options)
    x = torch.randn(4, WIDTH)
    x[2, 1] = torch.nan
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert out.isnan().any(-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("learns", [False, True])
def test_the_operators_keep_their_promises(learns):
    torch.manual_seed(0)
    rows, columns, queries = (torch.randn(*shape, requires_grad=learns) for shape in ((2, 4, 3), (2, 4, 2), (3, 2, 5)))
    assert set(torch.library.opcheck(product_ops._lookup, (rows, columns, queries, 3)).values()) == {"SUCCESS"}
    values, weights = torch.randn(5, 3), torch.randn(4, 2, requires_grad=learns)
    ids = torch.randint(-1, 5, (4, 2))
    assert set(torch.library.opcheck(product_ops._bag, (values, ids, weights, None)).values()) == {"SUCCESS"}


def test_ports_keep_nothing_alive():
    memory = mx.torch.ProductKeyMemory(WIDTH, 4, heads=2, k=3, key_dim=5)
    table = weakref.ref(memory.values)
    del memory
    gc.collect()
    assert table() is None
