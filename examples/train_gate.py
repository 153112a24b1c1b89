"""Train a gate on a memory as Memorizing Transformers do: segment after segment, reset where a document ends.

A byte-level model reads Python's standard library, eight files at a time, none twice. One layer, without positions,
attends to its segment and to what the file's earlier segments left in a memory; a learned gate per head weighs the two.
A twin without a memory reads the same. 600 steps (minutes; `--quick`: 16) open the gates and leave the twins even.
"""

import random
import sys
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AttentionInterface, Exaone4Config, Exaone4ForCausalLM

import mnemex as mx

BATCH, SEGMENT, HEADS, KV_HEADS, FULL = 8, 256, 4, 2, 3  # files; bytes; query heads, key/value heads; the layer


def attend(module, q, k, v, _mask, scaling, **_):
    if (bank := getattr(module, "bank", None)) is None:  # a segment fits in the window: every layer is just causal
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    else:
        out = mx.torch.attention(q, k, v, memory=bank, top_k=32, is_causal=True, scale=scaling, merge=module.gate)
        bank.stage(k.detach(), v.detach())
    return out.transpose(1, 2), None


AttentionInterface.register("gated", attend)


def make(hidden, memory):
    torch.manual_seed(0)
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": 64, "sliding_window": SEGMENT}
    sizes = {"vocab_size": 257, "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 5}
    kinds = ["full_attention" if i == FULL else "sliding_attention" for i in range(5)]
    model = Exaone4ForCausalLM(Exaone4Config(**heads, **sizes, layer_types=kinds, attn_implementation="gated"))
    model.model.embed_tokens.weight.data.normal_()
    reader = model.model.layers[FULL].self_attn
    reader.q_norm.weight.data.fill_(4.0)  # sharp enough to tell entries apart
    reader.gate = mx.torch.Gate(HEADS) if memory else None  # in the model's parameters and state_dict from here on
    reader.bank = mx.Bank(rows=BATCH, heads=KV_HEADS, key_dim=64, value_dim=64, capacity=8192) if memory else None
    return model, reader.gate, reader.bank


def segments(files):  # of one file after the other: [SEGMENT] tokens, and whether it is the last of its file
    for file in files:
        text = torch.tensor([256, *file.read_bytes()])
        whole = text[: len(text) // SEGMENT * SEGMENT].view(-1, SEGMENT)
        yield from ((tokens, i == len(whole) - 1) for i, tokens in enumerate(whole))


def train(files, memory, hidden, steps):
    model, gate, bank = make(hidden, memory)
    muon = torch.optim.Muon([p for p in model.model.layers.parameters() if p.ndim == 2], lr=0.01)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1 or len(p) == 257], lr=4e-3)
    lanes, losses = zip(*(segments(files[lane::BATCH]) for lane in range(BATCH)), strict=False), []
    for step, parts in zip(range(1, steps + 1), lanes, strict=False):
        tokens = torch.stack([part for part, _ in parts])
        loss = model(tokens, labels=tokens, use_cache=False).loss  # of each byte but the first of a segment
        loss.backward()
        muon.step()
        adam.step()
        model.zero_grad()
        if memory:  # written after the segment, forgotten where the document ends
            bank.commit()
            bank.reset(rows=[row for row, (_, ends) in enumerate(parts) if ends])
        losses.append(loss.item() * 1.442695)  # nats to bits
        if step % (steps // 4) == 0:
            how = f"with memory, gates {gate.weight.sigmoid().detach().numpy().round(3)}" if memory else "no memory"
            print(f"step {step:3}: {sum(losses[-steps // 4 :]) / (steps // 4):.3f} bits per byte, {how}", flush=True)


if __name__ == "__main__":
    library = [f for f in sorted(Path(random.__file__).parent.rglob("*.py")) if "site-packages" not in f.parts]
    random.Random(0).shuffle(library)
    for memory in (False, True):
        train(library, memory, *((64, 16) if "--quick" in sys.argv else (128, 600)))
