"""Signatures without a key to keep: sigstore certifies for minutes whoever logs in, and a public log remembers what was signed.

Both ways need the network: signing for the login, the certificate and the log; verifying for sigstore's roots, which it renews each time.
Source: https://docs.sigstore.dev; model-signing 1.1, `use_sigstore_signer` and `use_sigstore_verifier`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from certify.errors import CertifyError
from certify.signoff.signature import told


@dataclass(frozen=True, slots=True)
class Login:
    """Whoever this process can show to be: the workload of a pipeline (GitHub, GitLab, Google Cloud, Buildkite), else who logs in."""

    def configure(self, library: SimpleNamespace) -> Any:
        """model-signing's configuration. Raises CertifyError where sigstore cannot be reached."""
        with _reached(library, "a --private-key signs without it"):
            return _Reaching(library.signing.Config().use_sigstore_signer(use_ambient_credentials=True), library)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who must have signed.

    name      an e-mail address, or the URI of a workflow
    provider  the OpenID provider that vouches for it, an URL: https://accounts.google.com, https://token.actions.githubusercontent.com
    """

    name: str
    provider: str
    files: tuple[Path, ...] = ()

    def configure(self, library: SimpleNamespace) -> Any:
        """model-signing's configuration. Raises CertifyError where sigstore's roots cannot be fetched."""
        with _reached(library, "a signature by a key is verified without it"):
            return library.verifying.Config().use_sigstore_verifier(identity=self.name, oidc_issuer=self.provider)

    def material(self, found: Any) -> dict[str, Any]:
        """All of it: the certificate, the log's entry, timestamps. Raises ValueError where there is no entry of a log."""
        if not isinstance(found, dict) or not found.get("tlogEntries"):
            raise ValueError("it was not made with sigstore: there is no entry of a log")
        return found

    def holder(self, _material: dict[str, Any], _library: SimpleNamespace) -> str:
        """The identity that the library has found in the certificate."""
        return f"{self.name}, as {self.provider} says"


@dataclass(frozen=True, slots=True)
class _Reaching:
    """A signing configuration that says in a sentence where the network fails it."""

    config: Any
    library: SimpleNamespace

    def sign(self, path: Path, signature: Path) -> None:
        with _reached(self.library, "a --private-key signs without it"):
            self.config.sign(path, signature)


@contextmanager
def _reached(library: SimpleNamespace, instead: str) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise CertifyError(f"sigstore asks for the code of a login, and nobody answers here; {instead}") from error
    except library.sigstore.oidc.IdentityError as error:
        raise CertifyError(f"sigstore does not take this login ({told(error)}); {instead}") from error
    except (library.sigstore.errors.Error, library.sigstore.oidc.IssuerError, *library.unreached) as error:
        raise CertifyError(f"sigstore needs the network, and cannot be used from here ({told(error)}); {instead}") from error
