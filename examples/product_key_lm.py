"""Train byte-level language models whose middle feed-forward block is a product-key memory, beside twins without it.

Every model reads the same bytes of Python's standard library in the same order for the same number of steps. A twin
keeps the feed-forward block, as wide as makes its parameters as many as those that a token uses in the memory: the
query, all sub-keys, and the values read. Prints bits per byte of files that no model was trained on, and how evenly
slots are used there, as a table in Markdown; `--write PAGE` puts it between the markers of that page. Minutes on two
cores; `--quick` makes everything small.
"""

import random
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import mnemex as mx

QUICK = "--quick" in sys.argv
DIM, LAYERS, MEMORY, ATTENTION_HEADS = 128, 4, 2, 4  # MEMORY: which block
HEADS, K, KEY_DIM, KEYS = 4, 32, 64, (8, 16) if QUICK else (64, 128, 256)  # KEYS: n_keys; slots are their squares
BATCH, LENGTH, STEPS, HELD_OUT = (4, 64, 12, 32) if QUICK else (8, 128, 400, 256)  # sequences, bytes of each
MARKERS = "<!-- measured -->\n", "<!-- until here -->\n"


class Block(nn.Module):
    """Attention and what is given as feed-forward, each after a norm and beside a residual."""

    def __init__(self, feed_forward):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(DIM), nn.LayerNorm(DIM)])
        self.mix, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.feed_forward = feed_forward

    def forward(self, x):
        """Map `[B, T, DIM]`."""
        parts = self.mix(self.norms[0](x)).unflatten(-1, (3, ATTENTION_HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.feed_forward(self.norms[1](x))


class Model(nn.Module):
    """A byte-level language model."""

    def __init__(self, middle):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, DIM), nn.Embedding(LENGTH, DIM)
        wide = [nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM)) for _ in range(LAYERS)]
        wide[MEMORY] = middle
        self.blocks = nn.Sequential(*map(Block, wide))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 256)
        for part in (self.bytes, self.places):
            nn.init.normal_(part.weight, std=0.1)

    def forward(self, tokens):
        """Give the loss of every byte but the first, in nats."""
        x = self.blocks(self.bytes(tokens[:, :-1]) + self.places.weight[: tokens.shape[1] - 1])
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())


def sequences(files, count, seed):
    text = torch.frombuffer(bytearray().join(file.read_bytes() for file in files), dtype=torch.uint8)
    starts = torch.randint(len(text) - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    return text[starts[:, None] + torch.arange(LENGTH)].long()


def active(n_keys):
    """Count the parameters that one token uses in a memory."""
    return HEADS * (KEY_DIM * DIM + n_keys * KEY_DIM + K * DIM)


def train(middle, texts, held_out):
    torch.manual_seed(0)
    model = Model(middle())
    values, others = mx.torch.split_values(model)
    optimizers = [torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01)]
    optimizers += [torch.optim.SparseAdam(values, lr=1e-3)] if values else []
    start = time.perf_counter()
    for step in range(STEPS):
        optimizers[0].param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / STEPS)  # not the values'
        loss = model(texts[step * BATCH : (step + 1) * BATCH])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    seconds = (time.perf_counter() - start) / STEPS
    model.eval()
    memory = model.blocks[MEMORY].feed_forward
    if values:
        memory.reset_usage()
    with torch.no_grad():
        bits = sum(model(part).item() for part in held_out.split(BATCH)) / (len(held_out) // BATCH) * 1.442695
    return bits, 1000 * seconds, memory.usage() if values else None


def rows(texts, held_out):
    for n_keys in KEYS:
        hidden = active(n_keys) // (2 * DIM)

        def twin(hidden=hidden):
            return nn.Sequential(nn.Linear(DIM, hidden), nn.GELU(), nn.Linear(hidden, DIM))

        def memory(batch_norm, n_keys=n_keys):
            sizes = {"n_keys": n_keys, "heads": HEADS, "k": K, "key_dim": KEY_DIM}
            return mx.recipes.product_key(DIM, **sizes, batch_norm=batch_norm, track_usage=True)

        bits, ms, _ = train(twin, texts, held_out)
        yield f"| feed-forward, {hidden} wide | {active(n_keys):,} | {bits:.3f} | | | {ms:.0f} |"
        for how, batch_norm in (("with", True), ("without", False)):
            bits, ms, usage = train(lambda b=batch_norm: memory(b), texts, held_out)
            what = f"{n_keys**2:,} slots, {how} BatchNorm"
            yield f"| {what} | {active(n_keys):,} | {bits:.3f} | {usage.share:.1%} | {usage.kl:.2f} | {ms:.0f} |"


if __name__ == "__main__":
    library = [f for f in sorted(Path(random.__file__).parent.rglob("*.py")) if "site-packages" not in f.parts]
    random.Random(0).shuffle(library)
    texts, held_out = sequences(library[40:], BATCH * STEPS, 1), sequences(library[:40], HELD_OUT, 2)
    lines = ["| middle block | parameters a token uses | bits per byte | slots used | KL, nats | ms a step |"]
    lines.append("|---|---|---|---|---|---|")
    print(*lines, sep="\n", flush=True)
    for line in rows(texts, held_out):
        lines.append(line)
        print(line, flush=True)
    if "--write" in sys.argv:
        page = Path(sys.argv[sys.argv.index("--write") + 1])
        before, _, rest = page.read_text("utf-8").partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        page.write_text(before + MARKERS[0] + "\n".join(lines) + "\n" + MARKERS[1] + after, "utf-8")
