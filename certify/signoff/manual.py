"""What `lora-certify sign`, `verify` and `compare` say of themselves with --help."""

EXITS = "Exit codes: 0 {done} · 1 refused, and the sentence says why · 3 ERROR, the tool itself failed · 4 usage"

SIGN = """\
Sign a certificate: "I have read it, and I release what it names".

Only a certificate that says CERTIFIED is signed. It stays as it is; the signature, a sigstore bundle, is written beside it, and
model-signing's own command can verify it as well.

An encrypted key is opened with the password in the environment variable LORA_CERTIFY_KEY_PASSWORD (not with an X.509
certificate: model-signing 1.1.1 cannot). With --sigstore there is no key: a pipeline signs as the workload that it is, a person by
a login in the browser, and sigstore's public log keeps the name, the time and the digest.

A key pair, and a signature:

  openssl ecparam -name prime256v1 -genkey -noout -out KEY
  openssl ec -in KEY -pubout -out KEY.pub
  lora-certify sign REPORT/certificate.json --private-key KEY
"""

VERIFY = """\
Say whether a merged directory may be deployed: exit code 0, or one sentence that says why not.

In this order: the signature is by the key, by an X.509 certificate that leads to a root, today, or by a login of sigstore's; the
verdict is CERTIFIED; the level is high enough; the adapter was given to the gate, not found by a claim of the merged directory; the
folder digest is the expected one; MERGED holds exactly the files that were certified, hidden ones included, and no symbolic link;
the sha256 of each, computed anew, is the certified one. Every byte of MERGED is read once, by several threads.

NAME of --signer is the subject of the X.509 certificate as RFC 4514 writes it (CN=Release Desk,O=Example), or an e-mail address, a
DNS name or a URI that it was issued for. Without it, whoever holds any certificate under the root can sign.

The folder digest is the sha256 of the sorted lines "sha256, two spaces, relative path". It says which release is meant: without it,
any directory that was ever certified and signed passes with its own certificate.

Nothing is written. Whoever can write to MERGED can change it afterwards: mount it read-only.

  lora-certify verify MERGED --certificate REPORT/certificate.json --public-key KEY.pub
  lora-certify verify MERGED --certificate certificate.json --root ROOT.pem --signer release@example.org
  lora-certify verify MERGED --certificate certificate.json --sigstore \\
      --identity release@example.org --identity-provider https://accounts.google.com
"""

COMPARE = """\
Say what changed from certificate A to certificate B.

Verdict, level, base, adapters, counts, versions; files by sha256; failures, accepted differences and what the loaders say that are
new or gone; error / bound and retention of the tensors that either of them counts among its worst; retention of the whole.

Signatures are not looked at. The exit code is 0 whatever changed; a script asks --json for "same".
"""
