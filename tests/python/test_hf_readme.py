"""The Python in README.md that takes a model runs as it stands there, on a small random one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

from hf_models import lengths  # noqa: E402
from test_readme import EXAMPLES  # noqa: E402


def test_the_example_of_a_model_keeps_a_window_and_remembers_the_rest():
    (code,) = (example for example in EXAMPLES if "mx.hf" in example)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None
    )
    inputs = {"input_ids": torch.randint(0, 100, (1, 600)), "attention_mask": torch.ones(1, 600, dtype=torch.int64)}
    names = {"model": transformers.LlamaForCausalLM(config).eval(), "inputs": inputs}
    exec(compile(code, "README.md", "exec"), names)
    assert names["tokens"].shape == (1, 664)
    assert torch.equal(names["tokens"][:, :600], inputs["input_ids"])
    seen = 663  # the last token was written and not read
    assert names["cache"].get_seq_length() == seen
    assert names["memory"].layers == (0, 1)
    for layer in names["memory"].layers:
        assert lengths(names["memory"][layer]) == [seen - 511 - 4]
