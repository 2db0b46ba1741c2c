"""What stands beside the weights: which files have a meaning for a loader, and what kind of thing each is. Names only."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from certify.inputs.checkpoint import INDEX, Checkpoint
from certify.inputs.folder import visible_files

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, OLD_TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
VOCABULARIES = (TOKENIZER_JSON, "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
MERGES, SPECIAL, ADDED = "merges.txt", "special_tokens_map.json", "added_tokens.json"
TOKENS = (MERGES, SPECIAL, ADDED, TOKENIZER_CONFIG, TEMPLATE, OLD_TEMPLATE)
VERSIONED = re.compile(r"tokenizer\.(\d[\w.]*\.json|model\.v\d+\S*)")  # transformers' tokenizer.4.0.0.json, mistral's tokenizer.model.v3
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json")
SETTINGS = re.compile(
    r"params\.json|modules\.json|model_index\.json|config_sentence_transformers\.json|sentence_\w+_config\.json"  # other libraries' models
    r"|hf_quant_config\.json|quant(ize)?_config\.json|normalizer\.json"  # quantisers' own, beside config.json; Whisper's spelling
)  # a loader that finds one goes by it
CODE_SUFFIXES = (".py", ".pyc", ".so")  # what a loader that trusts remote code would execute
DOCUMENT_SUFFIXES = (".md", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4", ".ipynb")
DOCUMENT_STEMS = ("license", "notice", "readme", "use_policy", "changelog", "merge-")  # merge-*: the manifest and log of a merge
LEFTOVERS = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")  # of a training run


def side_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Relative names, sorted: no weights, no index of weights, no documents."""
    weights = {*checkpoint.weight_files, *checkpoint.stray, INDEX}
    return tuple(name for name in visible_files(checkpoint.directory) if name not in weights and not _without_meaning(name))


def is_tokenizer(name: str) -> bool:
    """Whether a file is a part of the tokenizer, its chat templates included."""
    if name in VOCABULARIES or name in TOKENS:
        return True
    other = name.endswith(".tiktoken") or name.startswith(f"{MORE_TEMPLATES}/") or VERSIONED.fullmatch(name) is not None
    return other and not is_code(name)


def is_code(name: str) -> bool:
    return name.endswith(CODE_SUFFIXES)


def complete_tokenizers(adapters: Iterable[Path]) -> tuple[Path, ...]:
    """The adapter directories that hold a whole tokenizer: its configuration and a vocabulary."""
    return tuple(a for a in adapters if (a / TOKENIZER_CONFIG).is_file() and any((a / name).is_file() for name in VOCABULARIES))


def tokenizer_files(directory: Path) -> frozenset[str]:
    """The parts of the tokenizer in one directory."""
    return frozenset(name for name in visible_files(directory) if is_tokenizer(name))


def _without_meaning(name: str) -> bool:
    path = PurePosixPath(name.lower())
    document = path.suffix in DOCUMENT_SUFFIXES or path.name.startswith(DOCUMENT_STEMS)
    return not is_code(name) and (document or path.name.endswith(".index.json") or name in LEFTOVERS)
