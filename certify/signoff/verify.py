"""Whether a merged directory may be deployed: its certificate is signed, demands hold, and every file is the one that was certified."""

from dataclasses import dataclass
from pathlib import Path

from certify.errors import RefusedError, UsageError
from certify.inputs.folder import listing_digest
from certify.inputs.strict_json import JSON_MAX
from certify.request import DIGEST, LEVELS
from certify.signoff import directory, signature
from certify.signoff.regular import content
from certify.signoff.signature import SIGNATURE_MAX, Trusted
from certify.signoff.stated import Stated, stated

CERTIFIED = "CERTIFIED"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a deployment asks for beyond a signature.

    level          the least level at which the directory was certified
    digest         the folder digest that the directory must have, 64 hex digits; None: any that is certified
    allow_claimed  whether an adapter may be one that only the merged directory itself named
    """

    level: str = "layers"
    digest: str | None = None
    allow_claimed: bool = False

    def refuse_unusable(self) -> None:
        """Raises UsageError for a demand that makes no sense."""
        if self.level not in LEVELS:
            raise UsageError(f"--level {self.level}: known are {', '.join(LEVELS)}")
        if self.digest is not None and not DIGEST.fullmatch(self.digest):
            raise UsageError(f"--expect-digest {self.digest}: 64 hexadecimal digits, the sha256 of a folder")


@dataclass(frozen=True, slots=True)
class Verified:
    """A directory that may be deployed. signer: who signed; digest: of the folder; size: bytes of all files."""

    certificate: Stated
    signer: str
    digest: str
    size: int


def verify(merged: Path, certificate: Path, bundle: Path, trust: Trusted, demand: Demand) -> Verified:
    """Cheap questions first, and nothing of the certificate is interpreted before its signature holds.

    Raises RefusedError, whose text is one sentence; UsageError; OSError where a file cannot be read.
    """
    demand.refuse_unusable()
    for path in (certificate, bundle, *trust.files):
        if path.resolve().is_relative_to(merged.resolve()):
            raise RefusedError(f"{path} lies inside the merged directory: whoever fills that could ship it along")
    raw = content(certificate, JSON_MAX)
    signer = signature.check(raw, _signature(bundle), trust)
    told = stated(raw)
    _satisfies(told, demand)
    sizes = directory.files(merged)
    _same_names(told, sizes)
    _same_bytes(told, directory.digests(merged, sizes))
    return Verified(told, signer, listing_digest(told.subjects), sum(sizes.values()))


def _signature(path: Path) -> bytes:
    if not path.exists():
        raise RefusedError(f"the certificate is not signed: there is no {path}")
    return content(path, SIGNATURE_MAX)


def _satisfies(told: Stated, demand: Demand) -> None:
    """The verdict, the level, the adapters and the digest. Raises RefusedError."""
    if told.verdict != CERTIFIED:
        raise RefusedError(f"the verdict is {told.verdict}: {told.reason}")
    if LEVELS.index(told.level) < LEVELS.index(demand.level):
        raise RefusedError(f"the level is {told.level}, which is lower than {demand.level}")
    if not told.predicate["adapters"]:
        raise RefusedError("the certificate names no adapter")
    if told.claimed and not demand.allow_claimed:
        name = told.claimed[0].get("name")
        raise RefusedError(f"the adapter {name} is claimed: only the merged directory named it (--allow-claimed lets it pass)")
    if demand.digest is not None and (found := listing_digest(told.subjects)) != demand.digest:
        raise RefusedError(f"the folder digest is {found}, not {demand.digest}: this is another release")


def _same_names(told: Stated, sizes: dict[str, int]) -> None:
    if added := sorted(sizes.keys() - told.subjects.keys()):
        raise RefusedError(f"{_some(added)} not certified")
    if missing := sorted(told.subjects.keys() - sizes.keys()):
        raise RefusedError(f"{_some(missing)} missing")


def _same_bytes(told: Stated, found: dict[str, str]) -> None:
    if differing := sorted(name for name, digest in found.items() if digest != told.subjects[name]):
        raise RefusedError(f"{_some(differing)} not what was certified (sha256)")


def _some(names: list[str]) -> str:
    """`a is`, or `a and 2 more are`."""
    return f"{names[0]} and {len(names) - 1:,} more are" if len(names) > 1 else f"{names[0]} is"
