#!/bin/sh
# Starts a command only if MERGED is the directory that was certified and signed; a container's entrypoint, or an init container.
#
#   MERGED         the directory to be served                    CERTIFICATE  its certificate.json; the signature lies beside it
#   PUBLIC_KEY     the key that must have signed; or ROOT, and SIGNER: an X.509 root, and whose certificate it must be
#   EXPECT_DIGEST  optional: the folder digest of this very release          LEVEL  optional: the least level (default: layers)
#
# Exit codes: those of `lora-certify verify` (1 refused, 3 the tool failed, 4 usage), else those of the command; 127 if it is not installed.
set -eu

if [ "$#" -eq 0 ]; then
    echo "entrypoint.sh: no command to start; for a check alone, give it the command true" >&2
    exit 4
fi
if [ -z "${MERGED:-}" ] || [ -z "${CERTIFICATE:-}" ]; then
    echo "entrypoint.sh: set MERGED, CERTIFICATE and PUBLIC_KEY (or ROOT and SIGNER)" >&2
    exit 4
fi

lora-certify verify "$MERGED" --certificate "$CERTIFICATE" --level "${LEVEL:-layers}" \
    ${PUBLIC_KEY:+--public-key "$PUBLIC_KEY"} ${ROOT:+--root "$ROOT"} ${SIGNER:+--signer "$SIGNER"} \
    ${EXPECT_DIGEST:+--expect-digest "$EXPECT_DIGEST"} || exit

exec "$@"
