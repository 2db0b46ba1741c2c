"""How much of a small LoRA delta each rounding keeps: a table per grid and size of delta, against the targets of the project.

`python benchmarks/retention.py [--size 2048]`. Gaussian weights that lie on the grid already, rank 16, one seed; through the engine's own
`storing.store`, a mebibyte at a time. Exits with 1 if a target is missed or an element lies beyond its two neighbours.
"""

import argparse
import sys
import time

import torch

from merge import encodings, fidelity, subspace
from merge.arithmetic import Delta
from merge.encodings import BlockScales, Grid
from merge.rounding import Floats, Space
from merge.storing import Rule, store

RANK, BLOCK, SIGMA, HEIGHT = 16, 128, 0.02, 128
DTYPES = {"BF16": torch.bfloat16, encodings.CODES: torch.float8_e4m3fn}
RETENTION = {("BF16", 1e-2): 0.01, ("BF16", 3e-3): 0.01, ("BF16", 1e-3): 0.01, (encodings.CODES, 3e-2): 0.01, (encodings.CODES, 1e-2): 0.01,
             (encodings.CODES, 3e-3): 0.01, (encodings.CODES, 1e-3): 0.02}  # fmt: skip
SUBSPACE = {"BF16": 0.03, encodings.CODES: 0.1}
RULES = (Rule("nearest"), Rule("stochastic"), Rule("faithful", rounds=5), Rule("faithful"))


def grid_and_weight(dtype: str, size: int) -> tuple[Grid, torch.Tensor]:
    """A grid and a weight that lies on it, decoded."""
    raw = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * SIGMA
    scales = None
    if dtype == encodings.CODES:
        largest = raw.view(size // BLOCK, BLOCK, size // BLOCK, BLOCK).abs().amax(dim=(1, 3))
        scales = BlockScales(largest / 448, BLOCK, BLOCK, size)
    grid, stored = Grid(encodings.named(dtype), scales), torch.empty(size, size, dtype=DTYPES[dtype])
    grid.encode(raw.clone(), stored, 0)
    grid.decode(stored, raw, 0)
    return grid, raw


def rounded(weight: torch.Tensor, delta: Delta, grid: Grid, dtype: torch.dtype, rule: Rule) -> tuple[dict[str, float], int, float]:
    """(the figures, elements beyond their neighbours, CPU nanoseconds per element) of one rule."""
    regions = subspace.regions((delta,), (len(weight), weight.shape[1]), 1)
    sums, beyond, spent, space = [], 0, 0.0, Space()
    for start in range(0, len(weight), HEIGHT):
        exact = weight[start : start + HEIGHT].clone()
        delta.apply(exact, start)
        out, decoded = torch.empty(exact.shape, dtype=dtype), torch.empty_like(exact)
        aims = tuple(subspace.aims(regions, start, exact, None))
        began = time.thread_time()
        found = store(exact, grid, out, start, "w", aims, rule, space)
        spent += time.thread_time() - began
        assert found is not None, "every number has a place"
        sums.append(found)
        grid.encoding.decode(out, decoded)
        around = Floats(dtype, grid.scales).bracket(exact, start, Space())
        if grid.scales:
            grid.scales.divide(around.step, start)
        beyond += int(((decoded != around.low) & (decoded != (around.low + around.step).to(dtype).float())).sum())
    return fidelity.figures(fidelity.folded(sums), rule.name, split=False), beyond, spent / weight.numel() * 1e9


def main() -> int:
    """1 if a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=2048)
    size, missed = parser.parse_args().size, 0
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(RANK, size, generator=generator), torch.randn(size, RANK, generator=generator)
    print("grid     ρ        rule          retention  error energy  subspace error  above floor  beyond   ns")
    for dtype, torch_dtype in DTYPES.items():
        grid, weight = grid_and_weight(dtype, size)
        for rho in (3e-2, 1e-2, 3e-3, 1e-3, 3e-4):
            delta = Delta(b, a, float(rho * weight.norm() / (b @ a).norm()))
            for rule in RULES:
                found, beyond, spent = rounded(weight, delta, grid, torch_dtype, rule)
                room = RETENTION.get((dtype, rho)) if rule == RULES[-1] else None
                fails = bool(beyond) or (
                    room is not None and (abs(found["retention"] - 1) > room or found["subspace_error"] > SUBSPACE[dtype])
                )
                missed += fails
                label = f"{rule.name} {rule.rounds}" if rule.name == "faithful" else rule.name
                print(
                    f"{dtype:8} {rho:<8g} {label:12} {found['retention']:10.4f} {found['error_energy']:13.3f} "
                    f"{found['subspace_error']:15.4f} "
                    f"{found.get('above_floor', float('nan')):12.4f} {beyond:7} {spent:5.1f}"
                    f"{'  MISSED' if fails else ''}"
                )
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
