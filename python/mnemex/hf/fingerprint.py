"""Which model wrote a memory: a short text that tells architectures and weights apart."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import nn

from mnemex.hf.function import MERGE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mnemex.hf.stack import Stack

SAMPLES = 1024
"""Numbers taken from each weight, evenly: training changes nearly all of them, so a sample tells."""

_SHAPE = (
    "model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_parameters",
    "partial_rotary_factor",
)  # fmt: skip


def fingerprint(stack: Stack, layers: Iterable[int]) -> str:
    """Architecture and weights of the attention of these layers, as "digest/digest".

    Weights are rounded to bfloat16 first, so that one model loaded in two dtypes stays one model.
    """
    config = stack.config
    known = config.to_dict()
    shape = {name: known.get(name) for name in _SHAPE}
    shape["layers"] = sorted(layers)
    architecture = json.dumps(shape, sort_keys=True, default=str).encode()
    weights = hashlib.blake2b(digest_size=8)
    for index in sorted(layers):
        if index in stack.modules:
            _sample(stack.modules[index], weights)
    return f"{hashlib.blake2b(architecture, digest_size=8).hexdigest()}/{weights.hexdigest()}"


def _sample(module: nn.Module, into: hashlib.blake2b) -> None:
    for name, parameter in module.named_parameters():
        if name.startswith(MERGE):
            continue
        flat = parameter.detach().reshape(-1)
        taken = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
        into.update(taken.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
