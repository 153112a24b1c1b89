"""Published systems by name: one short function each, which puts parts together with the published numbers.

A recipe holds no code of its own. It says where its numbers are from, what is this project's own reading, and what it
leaves to the model around it. Those that train return a module; the others return `Parts`.
"""

from __future__ import annotations

from mnemex.recipes.blocks import em_llm, infllm, longmem
from mnemex.recipes.caches import moviechat, pyramid_kv, subgen
from mnemex.recipes.decoders import attendre, camelot, extended_mind, memorizing_transformer, sirllm
from mnemex.recipes.layers import memory_plus, neurocache, product_key
from mnemex.recipes.parts import Parts
from mnemex.recipes.texts import memory_bank

__all__ = [
    "Parts",
    "attendre",
    "camelot",
    "em_llm",
    "extended_mind",
    "infllm",
    "longmem",
    "memorizing_transformer",
    "memory_bank",
    "memory_plus",
    "moviechat",
    "neurocache",
    "product_key",
    "pyramid_kv",
    "sirllm",
    "subgen",
]
