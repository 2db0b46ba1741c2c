"""The options of `sign`, `verify` and `compare`: types, names, help."""

from pathlib import Path
from typing import Annotated

import typer

from certify.request import LEVELS

Certificate = Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="certificate.json, as the gate wrote it.")]
PrivateKey = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, NIST P-256, P-384 or P-521.")]
SigningCertificate = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, the X.509 certificate of that key.")]
Chain = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="PEM, between it and the root; repeatable.")]
LogIn = Annotated[bool, typer.Option("--sigstore", metavar="", help="Sign by a login instead of a key; needs the network.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", show_default="CERTIFICATE.sig", help="The signature.")]

Merged = Annotated[Path, typer.Argument(metavar="MERGED", help="The directory that is to be deployed.")]
ItsCertificate = Annotated[Path, typer.Option("--certificate", metavar="FILE", help="Its certificate.json, which lies outside of it.")]
PublicKey = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, the key that must have signed.")]
Roots = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="PEM, X.509 root instead of a key; repeatable.")]
SignerName = Annotated[str | None, typer.Option("--signer", metavar="NAME", help="With --root: whose X.509 certificate it must be.")]
ByLogin = Annotated[bool, typer.Option("--sigstore", metavar="", help="Signed by a login instead of a key; needs the network.")]
Name = Annotated[
    str | None, typer.Option("--identity", metavar="NAME", help="With --sigstore: the e-mail or workflow that must have signed.")
]
Provider = Annotated[str | None, typer.Option("--identity-provider", metavar="URL", help="With --sigstore: who vouches for it (OpenID).")]
Signature = Annotated[Path | None, typer.Option(metavar="FILE", show_default="CERTIFICATE.sig", help="The signature.")]
Digest = Annotated[str | None, typer.Option(metavar="D", help="Folder digest that MERGED must have: this very release.")]
Level = Annotated[
    str, typer.Option(metavar="|".join(LEVELS), autocompletion=lambda: [*LEVELS], help="The least level that is enough.", show_default=True)
]
Claimed = Annotated[bool, typer.Option("--allow-claimed", metavar="", help="Let an adapter pass that only MERGED itself named.")]

Before = Annotated[Path, typer.Argument(metavar="A", help="One certificate.json.")]
After = Annotated[Path, typer.Argument(metavar="B", help="Another one.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON: everything that changed.")]
