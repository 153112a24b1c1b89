"""What the `mnemex` command can do. A command imports what it needs when it runs."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact attention memory for transformers.",
)


class DType(StrEnum):
    """Number formats the demo's model can run in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def demo(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH", help="Hub name, folder or GGUF file.", show_default="SmolLM2-135M-Instruct"
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UTF-8 file to read.", show_default="Python's own inspect.py")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Tokens that stay local.")] = 512,
    top_k: Annotated[list[int], typer.Option(min=1, help="Entries each query reads; repeat for several.")] = [8, 32],  # noqa: B006 - typer copies it
    tokens: Annotated[int, typer.Option(min=1, help="How much of the text to read.")] = 8192,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where report.html and the memory go.")] = Path(),
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 where it is faster.")] = DType.auto,
    other_windows: Annotated[
        bool, typer.Option("--other-windows", help="Chart a shorter and a longer window too; takes longer.")
    ] = False,
) -> None:
    """Read a real text with a real model: a short window, the window and a memory, full attention."""
    # PyTorch's threads spin for about a millisecond after each operation, on the processors that the memory's threads
    # need next. A thirtieth of that still catches the next operation: quicker with a memory, as quick without.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from mnemex.demo.pretrained import require

    require("torch", "transformers")
    from mnemex.demo.run import Settings, run
    from mnemex.demo.screen import Screen, show

    settings = Settings(
        model, text, window, top_k=tuple(top_k), n_tokens=tokens, out=out, dtype=dtype.value,
        other_windows=other_windows,
    )  # fmt: skip
    with Screen() as screen:
        finished = run(settings, screen)
    show(finished)
    if not finished.exact:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Say what mnemex found on this machine: processor, instruction set, threads, versions."""
    from rich.console import Console

    from mnemex.doctor import findings

    for name, value in findings().items():
        Console(highlight=False).print(f"[bold]{name:<16}[/]", value, sep="", soft_wrap=True)
