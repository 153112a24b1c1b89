"""Learned merges in an attached model: trained, saved and taken off with the model."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, gap, make, make_other, memory_of, tokens  # noqa: E402

HEADS = 4


class ModulesToSave(torch.nn.Module):
    """What PEFT puts in the place of a module named in `modules_to_save`: a trainable copy, which it calls."""

    def __init__(self, original):
        super().__init__()
        self.original_module = original
        self.modules_to_save = torch.nn.ModuleDict({"default": copy.deepcopy(original)})
        self.original_module.requires_grad_(False)

    def forward(self, x, *args, **kwargs):
        return self.modules_to_save["default"](x, *args, **kwargs)


def written(model, x):
    memory = memory_of(model)
    with torch.no_grad(), mx.hf.attach(model, memory) as a:
        a.ingest(x)
    return memory


@pytest.mark.parametrize(("base", "name"), [("sdpa", "llama"), ("eager", "gpt_oss"), ("sdpa", "bert")])
@torch.no_grad()
def test_a_bias_of_zero_is_joint_and_a_low_one_or_a_closed_gate_shut_the_memory_out(base, name):
    model, x = make_other(name) if name == "bert" else make(name, base), tokens(1, 24, seed=1)
    memory = written(model, x[:, :16])
    alone = model(x[:, 16:])[0]
    with mx.hf.attach(model, memory, top_k=EVERY):
        joint = model(x[:, 16:])[0]
    with mx.hf.attach(model, memory, top_k=EVERY, merge=mx.torch.Bias(HEADS)) as a:
        assert gap(model(x[:, 16:])[0], joint) <= 1e-6
        for number in a.parameters():
            number.fill_(-1e4)
        assert gap(model(x[:, 16:])[0], alone) <= 1e-5
    with mx.hf.attach(model, memory, top_k=EVERY, merge=mx.torch.Gate(HEADS, init=-1e4)):
        assert gap(model(x[:, 16:])[0], alone) <= 1e-5


@pytest.mark.parametrize("kind", [mx.torch.Bias, mx.torch.Gate])
def test_each_layer_learns_numbers_of_its_own_and_the_model_may_be_frozen(kind):
    model, x = make("llama").requires_grad_(False), tokens(1, 24, seed=2)
    memory = written(model, x[:, :16])
    with mx.hf.attach(model, memory, top_k=4, merge=kind(HEADS)) as a:
        numbers = list(a.parameters())
        assert [p.shape for p in numbers] == [(HEADS,)] * 2
        optimizer = torch.optim.SGD(a.parameters(), lr=1.0)
        before = [p.detach().clone() for p in numbers]
        model(x[:, 16:], labels=x[:, 16:], position_ids=torch.arange(16, 24)[None], use_cache=False).loss.backward()
        optimizer.step()
        assert all((p != b).all() for p, b in zip(numbers, before, strict=True))


def test_point_30_gates_are_in_the_state_dict_and_in_the_graph_with_an_empty_memory():
    model, x = make("llama"), tokens(1, 8, seed=3)
    plain = list(model.state_dict())
    memory = memory_of(model)
    with mx.hf.attach(model, memory, merge=mx.torch.Gate(HEADS)) as a:
        names = sorted(set(model.state_dict()) - set(plain))
        assert names == [f"model.layers.{i}.self_attn.mnemex_merge.weight" for i in range(2)]
        with torch.no_grad():
            want = model(x).logits
        out = model(x, use_cache=False).logits
        assert torch.equal(out, want)
        out.sum().backward()
        assert all(torch.equal(p.grad, torch.zeros(HEADS)) for p in a.parameters())
        with torch.no_grad():
            for i, p in enumerate(a.parameters()):
                p.fill_(i + 1.0)
        saved = copy.deepcopy(model.state_dict())
    assert list(model.state_dict()) == plain
    with mx.hf.attach(model, memory, merge=mx.torch.Gate(HEADS)) as a:
        model.load_state_dict(saved)
        assert [p.mean().item() for p in a.parameters()] == [1.0, 2.0]


@pytest.mark.parametrize("kind", [mx.torch.Bias, mx.torch.Gate])
def test_point_30_data_parallel_training_starts_with_an_empty_memory(kind, tmp_path):
    model, x = make("llama"), tokens(2, 12, seed=5)
    model.train()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with mx.hf.attach(model, memory_of(model), top_k=4, merge=kind(HEADS), write="all") as a:
            parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
            moved = []
            for step in range(3):  # where a parameter had no gradient, the next forward pass raises
                positions = torch.arange(12 * step, 12 * step + 12)[None]
                parallel(x, labels=x, position_ids=positions, use_cache=False).loss.backward()
                moved.append([p.grad is not None and bool(p.grad.any()) for p in a.parameters()])
                model.zero_grad()
                a.commit()
            assert moved == [[False] * 2, [True] * 2, [True] * 2]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name
@pytest.mark.parametrize("kind", [mx.torch.Bias, mx.torch.Gate])
def test_point_30_peft_trains_saves_and_loads_a_merge(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: it is in the group 'adapters'")
    model, x = make("llama"), tokens(1, 24, seed=4)
    memory = written(model, x[:, :16])
    rest = {"input_ids": x[:, 16:], "position_ids": torch.arange(16, 24)[None], "use_cache": False}
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["mnemex_merge"])
    with mx.hf.attach(model, memory, top_k=EVERY, merge=kind(HEADS)):
        first = model(**rest).logits
        adapted = peft.get_peft_model(model, config)
        assert torch.equal(adapted(**rest).logits, first)
        merges = {n: p for n, p in adapted.named_parameters() if "mnemex_merge" in n and p.requires_grad}
        assert len(merges) == 2
        before = {n: p.detach().clone() for n, p in merges.items()}
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            adapted(**rest, labels=rest["input_ids"]).loss.backward()
            optimizer.step()
        assert all((p != before[n]).all() for n, p in merges.items())
        want = adapted(**rest).logits
        adapted.save_pretrained(tmp_path / "adapter")
    saved = peft.utils.load_peft_weights(str(tmp_path / "adapter"))
    assert sum("mnemex_merge" in name for name in saved) == 2
    fresh = make("llama")
    with mx.hf.attach(fresh, memory, top_k=EVERY, merge=kind(HEADS)):
        assert torch.equal(fresh(**rest).logits, first)
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
        assert torch.equal(loaded(**rest).logits, want)
        assert not torch.equal(want, first)
    assert not any("mnemex" in n for n, _ in fresh.named_modules())


def test_a_module_that_stands_in_for_the_merge_is_obeyed():
    model, x = make("llama").requires_grad_(False), tokens(1, 24, seed=4)
    memory = written(model, x[:, :16])
    rest = {"input_ids": x[:, 16:], "position_ids": torch.arange(16, 24)[None], "use_cache": False}
    with mx.hf.attach(model, memory, top_k=EVERY, merge=mx.torch.Bias(HEADS)) as a:
        joint = model(**rest).logits
        for module in a.modules.values():
            module.mnemex_merge = ModulesToSave(module.mnemex_merge)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        assert names == [f"model.layers.{i}.self_attn.mnemex_merge.modules_to_save.default.weight" for i in range(2)]
        with torch.no_grad():
            model.get_parameter(names[0]).fill_(2.0)
        out = model(**rest).logits
        assert not torch.equal(out, joint)
        out.square().sum().backward()
        assert all(model.get_parameter(n).grad.abs().max() > 0 for n in names)
    assert not any("mnemex" in n for n, _ in model.named_modules())


def test_a_merge_of_another_number_of_heads_is_refused_by_name():
    model, x = make("llama"), tokens(1, 4)
    memory = memory_of(model)
    with pytest.raises(mx.ShapeError, match="merge has 3 heads, layer 0 of LlamaForCausalLM has 4"):
        mx.hf.attach(model, memory, merge=mx.torch.Gate(3))
    with mx.hf.attach(model, memory, merge=mx.torch.Gate(HEADS)):
        model.model.layers[1].self_attn.mnemex_merge = mx.torch.Gate(3)
        with pytest.raises(mx.ShapeError, match="merge has 3 heads, the queries have 4"):
            model(x)


@torch.no_grad()
def test_a_memory_made_while_a_merge_is_attached_is_of_the_same_model():
    model = make("llama")
    memory = memory_of(model)
    with mx.hf.attach(model, memory, merge=mx.torch.Bias(HEADS)):
        assert memory_of(model).fingerprint == memory.fingerprint
