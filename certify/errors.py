"""How the gate refuses. Damaged or unknown input is not an error: it becomes a finding."""


class CertifyError(Exception):
    """The gate cannot go on; `exit_code` is what the process ends with."""

    exit_code = 3


class UsageError(CertifyError):
    """The question makes no sense: a missing directory, unequal numbers of weights and adapters, an option not built yet."""

    exit_code = 4


class RefusedError(CertifyError):
    """A certificate, a signature or a directory does not hold what a deployment demands; the sentence names what."""

    exit_code = 1


class DamagedError(CertifyError):
    """Bytes that should be there are not, or do not mean what the header says. Checks turn it into a FAILED finding."""


class NotInterpretedError(CertifyError):
    """Something that this version does not know; guessing would be worse. Checks turn it into a NOT_INTERPRETED finding."""
