"""What transformers and PEFT themselves say when they load: their reports and warnings, as evidence. Headers only, nothing is materialised.

The tensors are handed to the loaders without storage, with the shapes and dtypes of the headers: 671 B parameters take 7 s. The base is
loaded in the same way: what the loader makes of the base is not the merge's fault, only what it makes of merged besides.
"""

import ctypes
import gc
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

import torch
import transformers
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig

from certify.encodings.coded import companions
from certify.errors import NotInterpretedError
from certify.expect.declared import Declared
from certify.expect.names import PREFIX
from certify.expect.skeleton import skeleton
from certify.expect.terms import plain_lora
from certify.finding import Figure, Finding, Outcome
from certify.inputs.adapter import Adapter, AdapterTensor
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored
from certify.verdict import grouped

CODE = "C7"
SUBJECT, ADAPTER_SUBJECT = "merged: loading", "adapter: loading"
DEFAULT = "default"  # PEFT's name for the only adapter
TABLE = "LOAD REPORT"  # transformers' table of keys; they are told one by one here
OF_LIBRARIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # about the libraries' own code, not about a checkpoint
SHOWN = 160  # characters of a loader's own words
MANY = 10_000  # tensors from which a skeleton takes more memory than the libraries themselves


@dataclass
class Report:
    """What a loader said. Keys are names of the model's own parameters, or of the file where the model has none.

    initialised  parameters that the checkpoint does not fill, which are made up      reshaped  those that it fills with another shape
    unexpected   tensors that the model has no place for                             refused   why it would not load, in its own words
    said         its warnings                                                        asked     it came so far as to report at all
    """

    initialised: set[str] = field(default_factory=set)
    reshaped: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    refused: str = ""
    asked: bool = False
    said: list[str] = field(default_factory=list)


def loading(base: Checkpoint, merged: Checkpoint, declared: Declared | None = None) -> Finding:
    """Merged as transformers loads it, beside the base: nothing may be made up, left out or refused that it loads of the base.

    Where the adapter brings another head, the base's own is carried, and the class that is declared leaves it alone.
    """
    try:
        expected = checkpoint_report(base)
    except NotInterpretedError as error:  # C4 decides what may be said about an unknown architecture, and C9 that no layer was run
        return Finding(CODE, SUBJECT, Outcome.UNDECIDED, str(error))
    if not expected.asked:
        return Finding(CODE, SUBJECT, Outcome.NOT_INTERPRETED, f"transformers cannot be asked about the base: {expected.refused}")
    try:
        found = checkpoint_report(merged)
    except NotInterpretedError as error:
        return Finding(CODE, SUBJECT, Outcome.FAILED, f"transformers builds the base's model, and not this one: {error}")
    _hand_back(merged)
    if declared is not None and declared.labels:
        expected.unexpected |= found.unexpected & base.tensors.keys()
    figures: dict[str, Figure] = {
        "initialised": len(found.initialised),
        "reshaped": len(found.reshaped),
        "unexpected": len(found.unexpected),
        "warnings": _short(" | ".join(found.said)),
    }
    problems = list(_keys(found, expected))
    if found.refused and not expected.refused:
        problems.append("so that it refuses to load" if problems else f"transformers refuses to load it: {found.refused}")
    if problems:
        return Finding(CODE, SUBJECT, Outcome.FAILED, "; ".join(problems), figures)
    warned = [f"transformers warns: {_short(said)}" for said in found.said if said not in expected.said]
    return Finding(CODE, SUBJECT, Outcome.PASSED, "; ".join([*_alike(found, expected), *warned]), figures)


def adapter_loading(base: Checkpoint, adapter: Adapter, subject: str = ADAPTER_SUBJECT) -> Finding:
    """The adapter as PEFT loads it onto the base. Never a failure: what PEFT drops is demanded all the same, by the accounts."""
    if not plain_lora(adapter.config):
        return Finding(CODE, subject, Outcome.PASSED, "PEFT is not asked: it may load, and run, what the gate does not interpret")
    try:
        found = adapter_report(base, adapter)
    except NotInterpretedError as error:
        return Finding(CODE, subject, Outcome.UNDECIDED, str(error))
    figures: dict[str, Figure] = {"missing": len(found.initialised), "dropped": len(found.unexpected)}
    told = [f"PEFT cannot load it: {found.refused}"] if found.refused else []
    told += [f"PEFT finds {_counted(found.initialised)} missing"] if found.initialised else []
    told += [f"PEFT drops {_counted(found.unexpected)}"] if found.unexpected else []
    told += [f"warning: {_short(said)}" for said in found.said]
    return Finding(CODE, subject, Outcome.PASSED, "; ".join(told), figures)


def checkpoint_report(checkpoint: Checkpoint) -> Report:
    """transformers' report on one directory. Raises NotInterpretedError where it cannot build the model that config.json names."""
    _hand_back(checkpoint)
    model = skeleton(checkpoint.directory)
    report = Report()
    with _heard(report.said):
        config = LoadStateDictConfig(device_map={"": "meta"}, dtype=model.dtype, weight_mapping=get_model_conversion_mapping(model))
        info = None
        try:
            info, _ = type(model)._load_pretrained_model(model, _hollow(_weights(checkpoint)), None, config)
            type(model)._finalize_model_loading(model, config, info)
        except Exception as error:  # RuntimeError after its report; or whatever a converter happens to raise
            report.refused = _short(str(error))
    if info is not None:
        report.asked = True
        report.initialised = set(info.missing_keys)
        report.reshaped = {key for key, *_ in info.mismatched_keys} | set(info.conversion_errors)
        report.unexpected = set(info.unexpected_keys)
    return report


def adapter_report(base: Checkpoint, adapter: Adapter) -> Report:
    """PEFT's report on one adapter. Raises NotInterpretedError where the base's model cannot be built."""
    if not plain_lora(adapter.config):
        raise NotInterpretedError(
            "PEFT is not asked about an adapter whose configuration is not interpreted: it may load, and run, anything"
        )
    import peft  # 2 s; only where an adapter is judged

    model = skeleton(base.directory)
    report = Report()
    with _heard(report.said):
        try:
            with torch.device("meta"):
                config = peft.PeftConfig.from_pretrained(str(adapter.directory))
                config.init_lora_weights = True  # what other initialisations compute has no meaning without storage
                wrapped = peft.PeftModel(model, config, DEFAULT)
            found = peft.set_peft_model_state_dict(wrapped, _hollow(adapter.tensors), DEFAULT, low_cpu_mem_usage=True)
            report.initialised = {key for key in found.missing_keys if f".{DEFAULT}" in key}  # the others are the base's own
            report.unexpected = set(found.unexpected_keys)
        except Exception as error:  # unknown tuners, names of an older module tree, tensors that do not fit …
            report.refused = _short(f"{type(error).__name__}: {error}")
    return report


def _hand_back(checkpoint: Checkpoint) -> None:
    """What an earlier skeleton took goes back to the system, where the C library can do that and it is worth the looking."""
    if len(checkpoint.tensors) < MANY:
        return
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _weights(checkpoint: Checkpoint) -> dict[str, Stored]:
    """Without the scales, which a quantiser reads on the loader's behalf."""
    read = companions(checkpoint.tensors)
    return {name: tensor for name, tensor in checkpoint.tensors.items() if name not in read}


def _hollow(tensors: Mapping[str, Stored] | Mapping[str, AdapterTensor]) -> dict[str, Tensor]:
    """The tensors without storage, one for all of a kind; those that are no floats as bytes, since only their shape matters here."""

    @cache
    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return {name: empty(t.shape, FLOATS.get(t.dtype, torch.uint8)) for name, t in tensors.items()}


@contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Collects what the libraries warn of and keeps it off the terminal, progress bars included."""
    library, names = transformers.utils.logging, logging.getLogger("transformers")
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    handlers, propagate = names.handlers, names.propagate
    library.set_verbosity_warning()
    library.disable_progress_bar()
    names.handlers, names.propagate = [_Listener(said)], False
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            yield
    finally:
        names.handlers, names.propagate = handlers, propagate
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
    said += [str(warning.message) for warning in raised if not issubclass(warning.category, OF_LIBRARIES)]


class _Listener(logging.Handler):
    """Keeps warnings, without transformers' table."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if TABLE not in record.getMessage():
            self._said.append(record.getMessage())


def _keys(found: Report, expected: Report) -> Iterator[str]:
    """What is worse than with the base."""
    if new := found.initialised - expected.initialised:
        yield f"transformers would initialise {_counted(new)} anew, which it loads from the base"
    if new := found.reshaped - expected.reshaped:
        yield f"transformers finds {_counted(new)} of another shape than the model's"
    if new := found.unexpected - expected.unexpected:
        yield f"transformers has no place for {_counted(new)}"


def _alike(found: Report, expected: Report) -> Iterator[str]:
    """What is as odd as with the base: not the merge's fault, and good to know."""
    if both := found.initialised & expected.initialised:
        yield f"transformers initialises {_counted(both)} anew, in base and merged alike"
    if both := found.unexpected & expected.unexpected:
        yield f"transformers does not load {_counted(both)}, of base and merged alike"
    if found.refused:
        yield f"transformers refuses to load base and merged alike: {found.refused}"


def _counted(keys: set[str]) -> str:
    names = sorted(key.removeprefix(PREFIX) for key in keys)
    return f"{len(keys):,} key{'s' if len(keys) > 1 else ''} ({grouped(names)})"


def _short(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
