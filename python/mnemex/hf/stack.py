"""Which layers of a model can read a memory, and what to tell the owner of one that cannot.

A memory goes to one stack of layers: the decoder of a causal language model, the decoder of an encoder-decoder (its
self attention, never its attention to the encoder), or an encoder. Layers that see only a window are left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from mnemex.errors import ArgumentError, DtypeError, Unsupported
from mnemex.hf.function import NAMES, base_of
from mnemex.hf.recurrent import own_cache
from mnemex.torch import checks

Layers = Literal["auto"] | Sequence[int]
Kind = Literal["causal", "encoder", "encoder-decoder"]


@dataclass(frozen=True)
class Stack:
    """The part of a model that a memory is attached to.

    Attributes
    ----------
    name
        Class name of the model, for messages.
    model
        The innermost transformers model that holds every attention layer below.
    owners
        That model and those around it that pass keyword arguments on, outermost first. Of an encoder-decoder, the
        decoder alone.
    config
        The config of the text decoder, or of the encoder.
    modules
        Attention modules by layer, for every layer that sees its whole past.
    others
        Why each of the other layers cannot be attached.
    kind
        "encoder": each token attends to all others, and texts stand side by side. The two decoders are causal.
    """

    name: str
    model: PreTrainedModel
    owners: tuple[PreTrainedModel, ...]
    config: PreTrainedConfig
    modules: dict[int, nn.Module]
    others: dict[int, str]
    kind: Kind

    def chosen(self, layers: Layers) -> dict[int, nn.Module]:
        """List the modules of `layers`, ascending; raises where one cannot be attached."""
        if isinstance(layers, str):
            if layers != "auto":
                raise ArgumentError(f"layers={layers!r}: expected 'auto' or layer numbers")
            return self.modules
        if not isinstance(layers, Iterable):
            raise DtypeError(f"layers={layers!r}: expected 'auto' or a list of layer numbers")
        numbers = sorted({checks.count("layers", number, low=0) for number in layers})
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
    def first_position(self) -> int:
        """Position of a text's first token: 0, or past the pad token's number where pads have a position (RoBERTa)."""
        if self.kind != "causal":
            return 0
        counting = (m for m in self.model.modules() if hasattr(m, "create_position_ids_from_input_ids"))
        pads = (getattr(m, "padding_idx", None) for m in counting)
        return next((pad + 1 for pad in pads if isinstance(pad, int)), 0)

    @property
    def expands_cached_keys(self) -> bool:
        """Whether the cache holds latents, from which keys and values are made after it (MLA)."""
        return any(getattr(m, "kv_lora_rank", None) is not None for m in self.modules.values())


def find_stack(model: nn.Module) -> Stack:
    """Find the attention layers that may read a memory; raises `Unsupported` where there are none."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise DtypeError(f"model is a {name}: expected a transformers model")
    owners = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    if not owners:
        raise Unsupported(
            f"{name} is not a transformers model: use mnemex.torch.attach, or mnemex.torch.attention inside its "
            "attention"
        )
    candidates = [m for m in model.modules() if _uses_interface(m)]
    if not candidates:
        raise Unsupported(
            f"{name} does not route its attention through transformers' AttentionInterface, so no public hook reaches "
            "it: use a model that does (most since 2025 do), or mnemex.torch.attention inside your own attention"
        )
    attentions = [m for m in candidates if _is_causal_self_attention(m)]
    kind: Kind = "encoder-decoder" if owners[0].config.is_encoder_decoder else "causal"
    if not attentions:
        kind = "encoder"
        attentions = [m for m in candidates if not getattr(m, "is_cross_attention", False)]
    config = owners[0].config.get_text_config(decoder=kind != "encoder")
    if kind != "encoder" and not getattr(config, "is_causal", True):
        raise Unsupported(
            f"the config of {name} turns causality off, which its attention layers do not know of: set "
            "config.is_causal to True, or use mnemex.torch.attention inside its attention"
        )
    by_index = _numbered(name, attentions, config, kind)
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
    sort = _sort_encoder_layers if kind == "encoder" else _sort_layers
    modules, others = sort(name, by_index, config)
    if not modules:
        raise Unsupported(f"no layer of {name} can read a memory: {'; '.join(sorted(set(others.values())))}")
    around = [m for m in owners if set(attentions) <= set(m.modules())]
    inner = around[-1]
    if not _takes_keywords(inner):
        raise Unsupported(
            f"{type(inner).__name__}.forward takes no **kwargs, so nothing can be handed to its attention layers: "
            "this model cannot be attached"
        )
    own = own_cache(inner)
    if own is not None:
        raise Unsupported(
            f"{name} keeps the past of its layers in a cache of its own, {own}, and takes no other, so what does not "
            "read the memory would forget: this model cannot be attached"
        )
    outer = () if kind == "encoder-decoder" else tuple(m for m in around[:-1] if _takes_keywords(m))
    return Stack(name, inner, (*outer, inner), config, modules, others, kind)


def _numbered(name: str, attentions: list[nn.Module], config: PreTrainedConfig, kind: Kind) -> dict[int, nn.Module]:
    """Attention layers by number: their own, or for encoders that number none, the order in which they stand."""
    if all(isinstance(getattr(m, "layer_idx", None), int) for m in attentions):
        by_index = {_index(m): m for m in attentions}
    elif kind == "encoder" and len(attentions) == getattr(config, "num_hidden_layers", None):
        by_index = dict(enumerate(attentions))
    else:
        by_index = {}
    if len(by_index) != len(attentions):
        raise Unsupported(
            f"{name} has several attention layers of one number, or without numbers: attach one of its encoders or "
            "decoders instead"
        )
    return by_index


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


def _sort_encoder_layers(
    name: str,  # noqa: ARG001 - the signature of `_sort_layers`
    by_index: dict[int, nn.Module],
    config: PreTrainedConfig,
) -> tuple[dict[int, nn.Module], dict[int, str]]:
    """Layers of an encoder that see every token, and why the others do not count."""
    types = getattr(config, "layer_types", None) or {}
    kinds = {index: types[index] if index < len(types) else "full_attention" for index in by_index}
    modules = {index: by_index[index] for index in sorted(by_index) if kinds[index] == "full_attention"}
    others = {
        index: f"it is of type {kind!r} and does not see every token, with or without a memory"
        for index, kind in kinds.items()
        if index not in modules
    }
    return modules, others


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
