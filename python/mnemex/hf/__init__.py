"""transformers adapter: an exact memory for causal language models, through public hooks only."""

from __future__ import annotations

from mnemex.hf.attach import attach
from mnemex.hf.attachment import Attachment, AttachmentStats
from mnemex.hf.cache import WindowCache
from mnemex.hf.model_memory import memory_for_model

__all__ = ["Attachment", "AttachmentStats", "WindowCache", "attach", "memory_for_model"]
