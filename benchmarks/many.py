"""The gate on as many tensors as DeepSeek-V3 has: `python benchmarks/many.py`.

92,000 tiny tensors in 163 shards, an adapter on attention, a merge of it; then the gate at the level `weights`, with a report. Prints wall
seconds and peak RSS of the judging process: what is paid per tensor, whatever its size.
"""

import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import merge
from benchmarks.speed import timed
from certify.launch import arguments
from merge.proxies import checkpoint, make_adapter, make_checkpoint
from merge.proxies.families import DEEP, Family, deepseek_v3

TINY = {**DEEP, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "n_routed_experts": 518}
SHARDS = 163


def many(layers: int) -> Family:
    """DeepSeek-V3's structure with twice its experts, since its scales are tensors too."""
    with patch.dict("merge.proxies.families.DEEP", TINY):
        made = deepseek_v3(layers)
    return Family(made.config, made.tensors, SHARDS, made.shard_name)


def main() -> int:
    """Raises SystemExit if the gate does not certify."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        with patch.dict(checkpoint.FAMILIES, {"deepseek-v3": many}):
            make_checkpoint("deepseek-v3", room / "base", layers=61)
        make_adapter(room / "base", room / "adapter")
        merge.merge(room / "base", room / "adapter", room / "merged")
        words = [f"--{name}={room / name}" for name in ("base", "adapter", "merged", "report")]
        seconds, rss = timed([sys.executable, "-P", "-m", "certify.launch", *arguments([*words, "--level=weights"])])
        tensors, junit = len(many(61).tensors), (room / "report" / "junit.xml").stat().st_size
        print(f"{tensors:,} tensors: {seconds:.1f} s, peak RSS {rss:.0f} MiB, {junit / 1e6:.1f} MB of JUnit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
