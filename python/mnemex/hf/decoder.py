"""Which layers of a model can read a memory, and what to tell the owner of one that cannot."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from mnemex.errors import ArgumentError, Unsupported
from mnemex.hf.function import NAMES, base_of

if TYPE_CHECKING:
    from torch import nn

Layers = Literal["auto"] | Sequence[int]


@dataclass(frozen=True)
class Decoder:
    """The part of a model that a memory is attached to.

    Attributes
    ----------
    name
        Class name of the model, for messages.
    model
        The innermost transformers model that holds every attention layer below.
    owners
        That model and those around it that pass keyword arguments on, outermost first.
    config
        The config of the text decoder.
    modules
        Attention modules by layer, for every layer that sees its whole past.
    others
        Why each of the other layers cannot be attached.
    """

    name: str
    model: PreTrainedModel
    owners: tuple[PreTrainedModel, ...]
    config: PreTrainedConfig
    modules: dict[int, nn.Module]
    others: dict[int, str]

    def chosen(self, layers: Layers) -> dict[int, nn.Module]:
        """List the modules of `layers`, ascending; raises where one cannot be attached."""
        if isinstance(layers, str):
            if layers != "auto":
                raise ArgumentError(f"layers={layers!r}: expected 'auto' or layer numbers")
            return self.modules
        numbers = sorted(set(layers))
        if not numbers:
            raise ArgumentError("layers is empty: expected 'auto' or at least one layer number")
        for number in numbers:
            if number not in self.modules:
                why = self.others.get(number, f"there are {len(self.modules) + len(self.others)} layers")
                raise Unsupported(
                    f"layer {number} of {self.name} cannot read a memory: {why}; "
                    f"these can: {', '.join(map(str, self.modules))}"
                )
        return {number: self.modules[number] for number in numbers}

    def configs(self, modules: dict[int, nn.Module]) -> list[PreTrainedConfig]:
        """List the distinct config objects that name the attention function, or build the masks, of these modules."""
        found: list[PreTrainedConfig] = [self.model.config, *(_config(m) for m in modules.values())]
        return list({id(c): c for c in found}.values())

    @property
    def expands_cached_keys(self) -> bool:
        """Whether the cache holds latents, from which keys and values are made after it (MLA)."""
        return any(getattr(m, "kv_lora_rank", None) is not None for m in self.modules.values())


def find_decoder(model: nn.Module) -> Decoder:
    """Find the attention layers of a causal language model; raises `Unsupported` for other models."""
    name = type(model).__name__
    owners = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    if not owners:
        raise Unsupported(
            f"{name} is not a transformers model: use mnemex.torch.attention inside its attention instead"
        )
    if owners[0].config.is_encoder_decoder:
        raise Unsupported(
            f"{name} is an encoder-decoder model: attach takes causal language models; "
            "mnemex.torch.attention works inside any attention"
        )
    candidates = [m for m in model.modules() if _uses_interface(m)]
    if not candidates:
        raise Unsupported(
            f"{name} does not route its attention through transformers' AttentionInterface, so no public hook reaches "
            "it: use a model that does (most since 2025 do), or mnemex.torch.attention inside your own attention"
        )
    config = owners[0].config.get_text_config(decoder=True)
    attentions = [m for m in candidates if _is_causal_self_attention(m)]
    if not attentions or not getattr(config, "is_causal", True):
        raise Unsupported(
            f"{name} is an encoder, each token of which attends to the ones after it: attach takes causal language "
            "models; mnemex.torch.attention works inside any attention"
        )
    by_index = {_index(m): m for m in attentions}
    if len(by_index) != len(attentions):
        raise Unsupported(f"{name} has several attention layers of one number: attach one of its decoders instead")
    for module in attentions:
        base = base_of(_config(module))
        if base not in NAMES:
            raise Unsupported(
                f"{name} runs attention {base!r}: attach works over 'sdpa' and 'eager'; "
                "load the model with attn_implementation='sdpa'"
            )
        if hasattr(module, "indexer"):
            raise Unsupported(
                f"{name} selects keys itself (sparse attention), which only works under the names 'sdpa' and 'eager': "
                "this model cannot be attached"
            )
    modules, others = _sort_layers(name, by_index, config)
    if not modules:
        raise Unsupported(f"no layer of {name} can read a memory: {'; '.join(sorted(set(others.values())))}")
    around = [m for m in owners if set(attentions) <= set(m.modules())]
    inner = around[-1]
    if not _takes_keywords(inner):
        raise Unsupported(
            f"{type(inner).__name__}.forward takes no **kwargs, so nothing can be handed to its attention layers: "
            "this model cannot be attached"
        )
    return Decoder(name, inner, tuple(m for m in around if _takes_keywords(m)), config, modules, others)


def _config(module: nn.Module) -> PreTrainedConfig:
    config: PreTrainedConfig = module.config  # type: ignore[assignment]
    return config


def _index(module: nn.Module) -> int:
    index: int = module.layer_idx  # type: ignore[assignment]
    return index


def _uses_interface(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _takes_keywords(model: PreTrainedModel) -> bool:
    return any(p.kind == p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())


def _is_causal_self_attention(module: nn.Module) -> bool:
    return (
        isinstance(getattr(module, "layer_idx", None), int)
        and getattr(module, "is_causal", True)
        and not getattr(module, "is_cross_attention", False)
    )


def _sort_layers(
    name: str, by_index: dict[int, nn.Module], config: PreTrainedConfig
) -> tuple[dict[int, nn.Module], dict[int, str]]:
    """Layers that see their whole past, and why the others do not count. transformers' own cache tells."""
    kinds = DynamicCache(config=config).layers
    types = getattr(config, "layer_types", None) or []
    modules, others = {}, {}
    for index in range(max(len(kinds), max(by_index) + 1)):
        # Releases before 5.23 end the cache before the layers that use the keys and values of others; later ones have
        # a layer there that keeps nothing.
        kind = kinds[index] if index < len(kinds) else None
        sees_all = index < len(types) and "full" in types[index]
        if index in by_index and type(kind) is DynamicLayer:
            modules[index] = by_index[index]
        elif index in by_index and not isinstance(kind, CacheLayerMixin) and sees_all:
            raise Unsupported(
                f"{name} shares the keys and values of one layer with others, which would miss what leaves the "
                "window: this model cannot be attached"
            )
        elif isinstance(kind, DynamicSlidingWindowLayer):
            others[index] = (
                f"it has a sliding window of {kind.sliding_window} and sees only that, with or without a memory"
            )
        elif kind is None:
            others[index] = "it keeps no past of its own"
        else:
            others[index] = f"it keeps its past as {type(kind).__name__}"
    return modules, others
