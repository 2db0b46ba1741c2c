"""How small a merge can be made: cuts, from gentle to hard, held against what transformers builds and what must stay. Reads headers."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge import architecture, encodings
from merge.architecture.skeleton import skeleton
from merge.catalog import Tensor, stored_bytes
from merge.errors import NOTHING_WRITTEN, MergeError, listing
from merge.nametable import NameTable
from merge.rehearse import adapter as small
from merge.rehearse.dimensions import EVEN, Cut
from merge.rehearse.shapes import Shape, Shapes
from merge.side_files import CONFIG
from merge.task import Merge

LIMIT = 50_000_000  # bytes of base and adapters together
QUICK, EACH = 8_000_000, 256  # bytes of numbers that are merged and judged within seconds: of all tensors, and more for each of many
FACTORS = (*(2**power for power in range(1, 13)), 1)  # what widths are divided by; 1 where nothing else fits
BLOCKS = (64, 32, 16, 8, 4)  # heights of the twin's blocks of scales


@dataclass(frozen=True)
class Sketch:
    """What a cut makes of a merge.

    config   the small configuration      base, adapters  tensor → its shape      ranks  of the adapters
    numbers  bytes of all tensors      size  headers included
    bent     quantised weights whose blocks are of another kind than in the real one: one instead of several, whole instead of ragged
    """

    cut: Cut
    config: Mapping[str, Any]
    base: Mapping[str, Shape]
    adapters: tuple[Mapping[str, Shape], ...]
    ranks: small.Ranks
    numbers: int
    size: int
    bent: int


class Studio:
    """One merge, and what transformers knows of its base."""

    def __init__(self, work: Merge) -> None:
        self.work = work
        self.tensors: Mapping[str, Tensor] = {tensor.name: tensor for catalog in work.catalogs for tensor in catalog.tensors}
        wanted = {name for adapter in work.opened for contribution in adapter.contributions for name in contribution.names}
        path = work.base / CONFIG
        self.config = architecture.read_config(path)
        self.name = next(iter(self.config["architectures"]), "")
        self.table: NameTable = architecture.name_table(path, self.tensors, wanted)
        self.real = self._parameters(path) if self.table.known else {}
        scheme = work.scheme
        self.scales = scheme.scales(self.tensors) if scheme else {}
        self.block = max((size for pair in scheme.blocks for size in pair), default=1) or 1 if scheme else 1
        self.headers = sum(len(catalog.header) for catalog in work.catalogs)

    def best(self) -> Sketch:
        """The gentlest cut that is small enough; raises MergeError where there is none."""
        problems: dict[str, None] = {}
        for factor in self._factors():
            for sketch in self._of(factor, problems):
                if sketch.numbers <= QUICK + EACH * len(self.tensors) and sketch.size <= LIMIT:
                    return sketch
                problems.setdefault(f"widths divided by {factor}: {sketch.size:,} bytes, which is too much")
        raise MergeError(
            f"no twin of {self.work.base} below {LIMIT // 1_000_000} MB can be made: its dimensions cannot be cut so that they still fit\n"
            f"{listing(list(problems))}\n{NOTHING_WRITTEN}"
        )

    def _factors(self) -> Iterator[int]:
        """Those that can be enough: a matrix shrinks by their square."""
        total = sum(tensor.size for tensor in self.tensors.values())
        return (factor for factor in FACTORS if total / factor**2 < 2 * LIMIT)

    def _of(self, factor: int, problems: dict[str, None]) -> list[Sketch]:
        """The best sketch of one factor: quantised weights keep their kinds of blocks where any height of a block lets them."""
        units = [EVEN] if self.block == 1 else self._units(factor)
        sketches = []
        for unit in units:
            try:
                sketches.append(self._sketch(factor, unit))
            except MergeError as error:
                problems.setdefault(f"widths divided by {factor}: {str(error).splitlines()[0]}")
        return sorted(sketches, key=lambda sketch: sketch.bent)[:1]

    def _units(self, factor: int) -> list[int]:
        """Heights of the small blocks that may keep several where there are several."""
        if factor == 1:
            return [self.block]
        return [unit for unit in BLOCKS if unit * factor <= 2 * self.block] or [BLOCKS[-1]]

    def _sketch(self, factor: int, unit: int) -> Sketch:
        """Raises MergeError where transformers cannot build the small model, or equal dimensions become different ones, or the reverse."""
        cut = Cut(factor, self.block, unit, frozenset(n for tensor in self.tensors.values() for n in tensor.shape))
        config = _with_blocks(cut.config(self.config), unit)
        with tempfile.TemporaryDirectory() as room:
            path = Path(room) / CONFIG
            path.write_text(json.dumps(config))
            built = self._parameters(path) if self.real else {}
        shapes = Shapes(self.table, self.real, built, factor)
        scheme, small_scheme = self.work.scheme, encodings.quantised(config)
        shapes.base(self.tensors, scheme, small_scheme)
        if shapes.problems:
            raise MergeError(f"{len(shapes.problems)} tensors lose their form, first {shapes.problems[0]}")
        opened = self.work.opened
        ranks = small.ranks(opened, shapes)
        made = tuple(small.shape_of(adapter, shapes, cut, ranks, self.tensors) for adapter in opened)
        held = sum(stored_bytes(tensor.dtype, shapes.found[name]) for name, tensor in self.tensors.items())
        held += sum(
            stored_bytes(adapter.tensors[name].dtype, shape)
            for adapter, found in zip(opened, made, strict=True)
            for name, shape in found.items()
        )
        headers = self.headers + sum(len(name) + 80 for found in made for name in found)
        kinds = (
            (_kinds(self.tensors[n].shape, (s.height, s.width)), _kinds(shapes.found[n], (unit, unit))) for n, s in self.scales.items()
        )
        bent = sum(real != cut for real, cut in kinds) if self.block > 1 else 0
        return Sketch(cut, config, shapes.found, made, ranks, held, held + headers, bent)

    def _parameters(self, config: Path) -> Mapping[str, Shape]:
        model = skeleton(config, self.name, {})
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _kinds(shape: Shape, block: tuple[int, int]) -> list[tuple[bool, bool]]:
    """(several blocks, the last one is smaller) of rows and of columns."""
    return [(length > size, bool(length % size)) for length, size in zip(shape[-2:], block, strict=True)]


def _with_blocks(config: Any, unit: int) -> Any:
    """A configuration whose blocks of scales are that high and wide, those of single rows aside."""
    if not isinstance(config, dict):
        return config
    sizes = ("weight_block_size", "block_structure")
    return {
        name: [min(size, unit) for size in value] if name in sizes and isinstance(value, list) else _with_blocks(value, unit)
        for name, value in config.items()
    }
