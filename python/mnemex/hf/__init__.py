"""transformers adapter: an exact memory for language models and encoders, through public hooks only."""

from __future__ import annotations

from mnemex.hf.attach import attach
from mnemex.hf.attachment import Attachment, AttachmentStats
from mnemex.hf.cache import WindowCache
from mnemex.hf.citations import Citation
from mnemex.hf.model_memory import memory_for_model

__all__ = ["Attachment", "AttachmentStats", "Citation", "WindowCache", "attach", "memory_for_model"]
