"""C1: every file is a sound safetensors file, the index and the files agree both ways, and no other weights lie beside them."""

from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import INDEX, Checkpoint
from certify.inputs.dtypes import TORCH_NAMES

CODE = "C1"
TITLE = "files are sound, the index agrees with them, nothing stray lies beside them"
FORMATS = ("pt", "mlx")  # which version 4 of transformers loads as PyTorch's; it takes any other for another framework's
STATED = TORCH_NAMES | {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # a header's dtype → what an index calls it
SHOWN = 4  # names of tensors shown per problem


def weight_file(subject: str, file: str, checkpoint: Checkpoint, base: Checkpoint) -> Finding:
    """One weight file that the index names. What the base has odd about its own is not the merge's fault."""
    if file in checkpoint.absent:
        return _finding(subject, ["the index names this file, but it does not exist"])
    header = checkpoint.headers[file]
    problems = list(header.problems)
    formats = {"", *FORMATS, *(theirs.format for theirs in base.headers.values())}
    problems += [f"states the format {header.format!r}, not {FORMATS[0]!r}"] if header.format not in formats else []
    if "/" in file and not any("/" in theirs for theirs in base.headers):
        problems.append("lies in a folder of its own; loaders that list the directory, as vLLM does, do not find it")
    elsewhere = [name for name in header.entries if checkpoint.weight_map.get(name) != file]
    unnamed = [name for name in elsewhere if name not in checkpoint.weight_map]
    if checkpoint.sharded:
        wrong = [name for name in elsewhere if name in checkpoint.weight_map]
        problems += _listed("holds {n} that the index does not name", unnamed)
        problems += _listed("holds {n} that the index places in another file", wrong)
        problems += _listed("holds {n} that another file holds as well", [n for n in header.entries if len(checkpoint.homes[n]) > 1])
        lacking = [name for name, home in checkpoint.weight_map.items() if home == file and name not in header.entries]
        problems += _listed("lacks {n} that the index places here", lacking)
    if not header.entries and not header.problems:
        problems.append("holds no tensor")
    return _finding(subject, problems)


def index_file(subject: str, checkpoint: Checkpoint, base: Checkpoint, output_dtype: str) -> Finding:
    """The index itself: readable, its files exist, its total_size is the sum of all tensors, its dtype one of theirs or the base's word."""
    problems = list(checkpoint.index_problems)
    problems += [f"names {file}, which does not exist" for file in checkpoint.absent]
    held = sum(tensor.entry.stop - tensor.entry.start for tensor in checkpoint.tensors.values())
    if checkpoint.total_size is not None and checkpoint.total_size != held:
        problems.append(f"total_size is {checkpoint.total_size:,}; the tensors have {held:,} bytes")
    dtypes = {STATED.get(tensor.dtype, tensor.dtype) for tensor in checkpoint.tensors.values()}
    known = dtypes | ({base.index_dtype.removeprefix("torch.")} if output_dtype == "same" else set())
    if checkpoint.index_dtype and checkpoint.index_dtype.removeprefix("torch.") not in known:
        problems.append(f"its metadata states the dtype {checkpoint.index_dtype}; the tensors are {', '.join(sorted(dtypes))}")
    return _finding(subject, problems)


def stray_file(subject: str, checkpoint: Checkpoint) -> Finding:
    """A file beside the checkpoint that holds, or may hold, weights: some loader will read it instead."""
    owner = f"the index {INDEX} does not name it" if checkpoint.sharded else "the weights are in model.safetensors"
    told = f"stray weight file: {owner}, yet other loaders may read it"
    return Finding(CODE, subject, Outcome.FAILED, told, {"problems": 1, "stray": True})


def damaged_input(subject: str, problems: list[str]) -> Finding:
    """A file of the base or of an adapter."""
    return _finding(subject, problems)


def _listed(sentence: str, names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    counted = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
    return [f"{sentence.format(n=counted)}: {shown}"]


def _finding(subject: str, problems: list[str]) -> Finding:
    if not problems:
        return Finding(CODE, subject, Outcome.PASSED)
    return Finding(CODE, subject, Outcome.FAILED, "; ".join(problems), {"problems": len(problems)})
