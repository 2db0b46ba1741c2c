"""Sound merges as other tools would make them: fresh scales, another arithmetic; only what no adapter touches is the engine's copy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from exam.giants.bench import DECODED, NEAREST, PROXIES, Shelf
from exam.giants.folder import Folder, adapter_delta, copied, encode, fresh_scales, spread
from exam.giants.scene import Scene

BLOCKED = tuple(proxy for proxy in PROXIES if proxy.startswith("deepseek"))


@dataclass(frozen=True, slots=True)
class Tool:
    """name, and what it makes of each touched weight."""

    name: str
    output: str
    store: Callable[[Scene, str], None]
    criterion: str = "nearest"

    def __str__(self) -> str:
        return f"{self.output} {self.name}"

    def made(self, shelf: Shelf, proxy: str) -> Path:
        """The merged directory."""
        way = NEAREST if self.output == "same" else DECODED
        merged = copied(shelf.merged(proxy, way), shelf.room / "tool")
        scene = Scene(Folder(shelf.base(proxy)), shelf.adapter(proxy), merged)
        for name in [name for name in scene.base.tensors if _touched(scene, name)]:
            self.store(scene, name)
        merged.write()
        return merged.directory


def _touched(scene: Scene, name: str) -> bool:
    try:
        adapter_delta(scene.adapter, name)
    except KeyError:
        return False
    return True


def _fresh(scene: Scene, name: str) -> None:
    """New scales for all of a touched weight, from float32 values; ue8m0 where the base's are powers of two."""
    codes = scene.base.tensors[name].float()
    merged = codes * spread(scene.base.tensors[f"{name}_scale_inv"], codes.shape) + adapter_delta(scene.adapter, name).float()
    powers = bool((torch.frexp(scene.base.tensors[f"{name}_scale_inv"].float())[0] == 0.5).all())
    scene.rescale(name, fresh_scales(merged, powers=powers), merged)


def _exact(scene: Scene, name: str) -> None:
    """float64 from beginning to end, on the engine's scales."""
    scene.merged.tensors[name] = encode(scene.due(name), scene.merged.tensors[f"{name}_scale_inv"])


def _decoded_exactly(scene: Scene, name: str) -> None:
    scene.merged.tensors[name] = scene.due(name).float().bfloat16()


ALL = (Tool("by fresh scales", "same", _fresh), Tool("in float64", "same", _exact), Tool("in float64", "bf16", _decoded_exactly))
TOOLS = dict.fromkeys(BLOCKED, ALL)
