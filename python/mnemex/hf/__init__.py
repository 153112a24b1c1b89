"""transformers adapter: an exact memory for language models and encoders, through public hooks only."""

# ruff: noqa: E402 - an old release is refused before the names are imported that it lacks
from __future__ import annotations

import transformers

from mnemex._releases import check_oldest

check_oldest("transformers", transformers.__version__)

from mnemex.hf.attach import attach
from mnemex.hf.attachment import Attachment, AttachmentStats
from mnemex.hf.cache import WindowCache
from mnemex.hf.citations import Citation
from mnemex.hf.model_memory import memory_for_model
from mnemex.hf.neurocache import NeurocacheAttachment, attach_neurocache

__all__ = [
    "Attachment",
    "AttachmentStats",
    "Citation",
    "NeurocacheAttachment",
    "WindowCache",
    "attach",
    "attach_neurocache",
    "memory_for_model",
]
