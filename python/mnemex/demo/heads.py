"""Memory mass by layer and head as a table whose cells are tinted: a heat map that can be read aloud."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def draw(by_layer: Mapping[int, NDArray[np.float64]]) -> str:
    """Return a table with a column for each layer and a row for each query head, in whole percent.

    Parameters
    ----------
    by_layer
        Share of the memory in the attention of each query head `[Hq]`, by layer; at least one.
    """
    most = max(float(shares.max()) for shares in by_layer.values()) or 1.0
    head = "".join(f'<th scope="col">{layer}</th>' for layer in by_layer)
    rows = [
        f'<tr><th scope="row">{head_number}</th>'
        + "".join(_cell(shares[head_number : head_number + 1], most) for shares in by_layer.values())
        + "</tr>"
        for head_number in range(max(map(len, by_layer.values())))
    ]
    mean = "".join(_cell(shares, most) for shares in by_layer.values())
    return (
        f'<table class="heat"><thead><tr><th scope="col">head / layer</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody><tfoot><tr><th scope="row">mean</th>{mean}</tr></tfoot></table>'
    )


def _cell(shares: NDArray[np.float64], most: float) -> str:
    if not len(shares):
        return "<td></td>"
    share = float(np.mean(shares))
    return f'<td style="--share:{share / most:.3f}">{100 * share:.0f}</td>'
