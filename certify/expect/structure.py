"""The structure witness: PEFT itself, injected into the skeleton, says which modules its configuration means and with which scaling."""

import math
from pathlib import Path
from typing import Any

import torch

from certify.expect.accounts import Accounts
from certify.expect.skeleton import quiet, skeleton
from certify.expect.terms import plain_lora

DEFAULT = "default"  # PEFT's name for the only adapter


def compare_with_peft(accounts: Accounts, base: Path) -> int | None:
    """Holds the accounts against PEFT; returns the number of modules that PEFT placed, None where it could not place any.

    A module that PEFT targets and the file lacks fails. A scaling that the two read differently leaves the tensor unjudged. Fused
    experts are left out: PEFT rewrites the configuration of older adapters and loses modules on the way, so that its silence about
    a module is no evidence (the ledger demands it all the same).
    """
    if accounts.terms is None or not plain_lora(accounts.adapter.config):  # PEFT may load, and run, what the gate does not know
        return None
    placed = _placed(skeleton(base), accounts)
    for path, scaling in (placed or {}).items():
        place = accounts.places.of_parameter(f"{path}.weight")
        if place is None:
            continue
        accounts.demand(place.key)
        ours = accounts.scalings.get(place.key)
        if ours is not None and not math.isclose(ours, scaling, rel_tol=1e-9):
            reason = f"PEFT reads the scaling {scaling:.6g} from this adapter's configuration, the ledger {ours:.6g}"
            accounts.note(place.key, reason)
            accounts.unjudged[place.key] = reason
    return None if placed is None else len(placed)


def _placed(model: Any, accounts: Accounts) -> dict[str, float] | None:
    """Module path → scaling for every plain linear module that PEFT wraps; None where PEFT refuses the configuration."""
    import peft  # 2 s; only where an adapter is judged
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    try:
        with quiet(), torch.device("meta"):
            config = peft.PeftConfig.from_pretrained(str(accounts.adapter.directory))
            config.init_lora_weights = True  # what other initialisations compute has no meaning without storage
            injected = peft.inject_adapter_in_model(config, model, DEFAULT)
    except Exception:  # names of an older module tree: NoMatchingPeftModuleError, ValueError, AttributeError …
        return None
    return {
        name: float(module.scaling[DEFAULT])
        for name, module in injected.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and DEFAULT in module.scaling
    }
