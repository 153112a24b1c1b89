"""Tiny random models of the families that are tested, and runs to compare; shared by the tests of this adapter."""

from __future__ import annotations

import torch
import transformers

import mnemex as mx
from mnemex._releases import release
from mnemex.hf.attach import BIASES

# These models are so small that a second thread only waits.
torch.set_num_threads(1)

VOCAB = 61
EVERY = None
"""`top_k` that reads every entry."""

SDPA = ["llama", "qwen3", "gpt2", "smollm3", "mistral", "gemma3"]
EAGER_ONLY = ["gemma2", "gpt_oss"]
FAMILIES = [*SDPA, *EAGER_ONLY]
BASES = [(name, base) for name in SDPA for base in ("sdpa", "eager")] + [(name, "eager") for name in EAGER_ONLY]

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
FULL = ["full_attention", "full_attention"]


def config_of(name: str, **changes: object) -> transformers.PreTrainedConfig:
    """Give the config of a family, small."""
    sizes = {**SIZES, **changes}
    match name:
        case "llama":
            return transformers.LlamaConfig(**{"num_key_value_heads": 2, **sizes})
        case "qwen3":
            return transformers.Qwen3Config(**{"num_key_value_heads": 2, "head_dim": 16, **sizes})
        case "smollm3":
            return transformers.SmolLM3Config(
                **{"num_key_value_heads": 2, "no_rope_layer_interval": 2, "use_sliding_window": False, **sizes}
            )
        case "mistral":
            return transformers.MistralConfig(**{"num_key_value_heads": 2, "sliding_window": None, **sizes})
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **{
                    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6,
                    "layer_types": FULL, **sizes,
                }
            )  # fmt: skip
        case "gemma2":
            return transformers.Gemma2Config(
                **{
                    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6,
                    "attn_logit_softcapping": 5.0, "layer_types": FULL, **sizes,
                }
            )  # fmt: skip
        case "gpt_oss":
            return transformers.GptOssConfig(
                **{
                    "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
                    "sliding_window": 6, "layer_types": FULL, **sizes,
                }
            )  # fmt: skip
        case "gpt2":
            return transformers.GPT2Config(
                **{
                    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 48,
                    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
                    "resid_pdrop": 0.0, **changes,
                }
            )  # fmt: skip
    raise ValueError(name)


ENCODERS = ["bert", "vit", "modernbert"]
ENCODER_DECODERS = ["t5", "bart"] if release(transformers.__version__) >= BIASES else ["bart"]
"""Those that attach: T5 is refused with an older transformers, which test_hf_releases.py looks at."""


def make_other(name: str, base: str = "sdpa", *, seed: int = 0) -> transformers.PreTrainedModel:
    """Make an encoder or an encoder-decoder, random like those of `make`."""
    torch.manual_seed(seed)
    model = _OTHERS[name]()
    model.set_attn_implementation(base)
    return sharpened(model)


def sharpened(model: transformers.PreTrainedModel, by: float = 4.0) -> transformers.PreTrainedModel:
    """Make the weights of a random model large enough that attention matters and tokens differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(by)
    return model.eval()


def build(config: transformers.PreTrainedConfig, by: float = 4.0) -> transformers.PreTrainedModel:
    """Make a random language model of a config."""
    torch.manual_seed(0)
    return sharpened(transformers.AutoModelForCausalLM.from_config(config), by)


def _bert() -> transformers.PreTrainedModel:
    sizes = {**SIZES, "bos_token_id": None}
    return transformers.BertModel(
        transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )


def _vit() -> transformers.PreTrainedModel:
    sizes = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    return transformers.ViTModel(
        transformers.ViTConfig(
            **sizes, num_attention_heads=4, image_size=8, patch_size=4, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def _modernbert() -> transformers.PreTrainedModel:
    sizes = {**SIZES, "num_hidden_layers": 3, "bos_token_id": None}
    types = ["full_attention", "sliding_attention", "full_attention"]
    return transformers.ModernBertModel(
        transformers.ModernBertConfig(**sizes, layer_types=types, cls_token_id=None, sep_token_id=None)
    )


def _t5() -> transformers.PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def _bart() -> transformers.PreTrainedModel:
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
            encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.0, attention_dropout=0.0,
            max_position_embeddings=128, bos_token_id=1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )  # fmt: skip


_OTHERS = {"bert": _bert, "vit": _vit, "modernbert": _modernbert, "t5": _t5, "bart": _bart}


def inputs_of(name: str, rows: int = 2, n: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make what the forward pass of an encoder or encoder-decoder takes."""
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}
    if name in ENCODER_DECODERS:
        return {"input_ids": tokens(rows, 7, seed), "decoder_input_ids": tokens(rows, n, seed + 1)}
    return {"input_ids": tokens(rows, n, seed)}


def make(name: str, base: str | None = None, *, seed: int = 0, **changes: object) -> transformers.PreTrainedModel:
    """Make a random model of a family."""
    torch.manual_seed(seed)
    base = base or ("sdpa" if name in SDPA else "eager")
    model = transformers.AutoModelForCausalLM.from_config(config_of(name, **changes), attn_implementation=base)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("sinks"):
                parameter.normal_()
    return sharpened(model)


def tokens(rows: int, n: int, seed: int = 0) -> torch.Tensor:
    """Random tokens without pads."""
    return torch.randint(2, VOCAB, (rows, n), generator=torch.Generator().manual_seed(seed))


def left_padded(pads: list[int], n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make a batch whose row i starts with `pads[i]` pads."""
    ids = tokens(len(pads), n, seed)
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        ids[row, :pad] = 0
        mask[row, :pad] = 0
    return {"input_ids": ids, "attention_mask": mask}


def unpadded(rows: int, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make a batch without pads."""
    return left_padded([0] * rows, n, seed)


def memory_of(model: transformers.PreTrainedModel, **options: object) -> mx.Memory:
    """Make an empty memory for the model."""
    return mx.Memory.for_model(model, **options)


def attention_modules(model: transformers.PreTrainedModel) -> list[torch.nn.Module]:
    """List the attention modules in order of their layers."""
    return [m for m in model.modules() if type(m).__name__.endswith("Attention")]


def attention_outputs(model: transformers.PreTrainedModel, run: object) -> list[torch.Tensor]:
    """Record what each attention module gave while `run()` ran."""
    seen: list[torch.Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, _a, out: seen.append(out[0])) for m in attention_modules(model)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def generate(model: transformers.PreTrainedModel, inputs: dict, cache: object = None, **how: object) -> object:
    """Twelve tokens, with the logits of each step."""
    how = {
        "max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True, **how,
    }  # fmt: skip
    return model.generate(**inputs, past_key_values=cache, **how)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of `b`."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def lengths(bank: mx.Bank) -> list[int]:
    """Count the entries of each row; every head of a row has as many."""
    assert (bank.lengths == bank.lengths[:, :1]).all()
    return bank.lengths[:, 0].tolist()
