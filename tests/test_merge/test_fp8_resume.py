"""A quantised merge that is stopped anywhere ends with the same bytes, whatever reads its scales first and with however many workers."""

import shutil
from pathlib import Path

import pytest

from merge.proxies import make_adapter, make_checkpoint
from tests.test_merge.interruption import Crash, FailingSink, content, run, work


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scales in other shards than their weights, two layers; the adapter is strong enough that some grow."""
    room = tmp_path_factory.mktemp("apart")
    base = make_checkpoint("deepseek-v3-fp8-apart", room / "base", layers=1)
    return base, make_adapter(base, room / "adapter")


@pytest.mark.parametrize("output_dtype", ["same", "bf16"])
def test_a_crash_at_any_effect_loses_nothing(output_dtype: str, pair: tuple[Path, Path]) -> None:
    out = pair[0].parent / f"out-{output_dtype}"
    task = work(pair, out, output_dtype=output_dtype)
    counting = FailingSink(out, -1, Crash())
    run(task, counting, workers=1)
    whole = content(out)
    shutil.rmtree(out)
    for at in range(1, counting.count + 1, max(1, counting.count // 12)):
        with pytest.raises(Crash):
            run(task, FailingSink(out, at, Crash()))
        run(task, workers=3)
        assert content(out) == whole, f"crash at effect {at} of {counting.count}"
        shutil.rmtree(out)
