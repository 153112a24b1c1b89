"""PyTorch adapter: attention over local keys and retrieved entries in one softmax, and trainable product-key memory."""

# ruff: noqa: E402 - an old release is refused before the names are imported that it lacks
from __future__ import annotations

import torch

from mnemex._releases import check_oldest

check_oldest("torch", torch.__version__)

from mnemex.torch.attach import Attachment, attach
from mnemex.torch.attention import attention
from mnemex.torch.merges import Bias, Gate
from mnemex.torch.neurocache import Neurocache
from mnemex.torch.product_keys import ProductKeyMemory, Usage
from mnemex.torch.product_values import ValueTable, split_values

__all__ = [
    "Attachment",
    "Bias",
    "Gate",
    "Neurocache",
    "ProductKeyMemory",
    "Usage",
    "ValueTable",
    "attach",
    "attention",
    "split_values",
]
