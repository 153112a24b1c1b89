"""torch on the CPU without selection: scaled dot-product attention over everything, and caches being filled."""

from __future__ import annotations

import torch

from benches.engines import BF16_SCAN, F32_SCAN, Answer, Job, Problem

VERSION = torch.__version__

torch.set_grad_enabled(False)


def isa() -> str:
    """Instruction set of torch's own kernels; oneDNN chooses for itself."""
    return torch.backends.cpu.get_cpu_capability()


def attend(problem: Problem) -> Job:
    """Full attention in float32."""
    return _attend(problem, torch.float32)


def attend_bf16(problem: Problem) -> Job:
    """Full attention on bfloat16 copies of keys, values and queries; the conversion is not timed."""
    return _attend(problem, torch.bfloat16)


def _attend(problem: Problem, dtype: torch.dtype) -> Job:
    torch.set_num_threads(problem.threads)
    case, data = problem.case, problem.data
    queries, keys, values = (
        torch.from_numpy(array)[None].to(dtype) for array in (data.queries, data.keys, problem.values)
    )

    def run() -> Answer:
        out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
        return {"out": out[0].float().numpy()}

    scan = BF16_SCAN if dtype == torch.bfloat16 else F32_SCAN
    return Job(run, 2.0 * case.dim * dtype.itemsize, scan=scan)


def write_cat(problem: Problem) -> Job:
    """Append by `torch.cat`, as a dynamic key/value cache does."""
    torch.set_num_threads(problem.threads)
    case, data = problem.case, problem.data
    keys, values = torch.from_numpy(data.keys), torch.from_numpy(problem.values)
    filled: dict[str, torch.Tensor] = {}

    def run() -> Answer:
        cached_keys, cached_values = keys[:, : case.chunk].clone(), values[:, : case.chunk].clone()
        for start in range(case.chunk, case.entries, case.chunk):
            chunk = slice(start, start + case.chunk)
            cached_keys = torch.cat([cached_keys, keys[:, chunk]], dim=1)
            cached_values = torch.cat([cached_values, values[:, chunk]], dim=1)
        filled.update(keys=cached_keys, values=cached_values)
        return {}

    return Job(run, 8.0 * case.dim, lambda: {name: cached.numpy() for name, cached in filled.items()})


def write_in_place(problem: Problem) -> Job:
    """Copy into arrays of the final size, as a static key/value cache does."""
    torch.set_num_threads(problem.threads)
    case, data = problem.case, problem.data
    keys, values = torch.from_numpy(data.keys), torch.from_numpy(problem.values)
    filled: dict[str, torch.Tensor] = {}

    def run() -> Answer:
        cached_keys, cached_values = torch.empty_like(keys), torch.empty_like(values)
        for start in range(0, case.entries, case.chunk):
            chunk = slice(start, start + case.chunk)
            cached_keys[:, chunk] = keys[:, chunk]
            cached_values[:, chunk] = values[:, chunk]
        filled.update(keys=cached_keys, values=cached_values)
        return {}

    return Job(run, 8.0 * case.dim, lambda: {name: cached.numpy() for name, cached in filled.items()})
