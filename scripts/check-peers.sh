#!/usr/bin/env bash
# How the bench calls the peers that no distribution carries, checked with a stand-in for each (peer-standin.sh): a wrong option
# or direction fails. What the tools make of it, only they can tell.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$(mktemp -d)"
trap 'rm -r "$bin"' EXIT
peers=()
for name in wdt escp bbcp mscp; do
    cp scripts/peer-standin.sh "$bin/$name"
    peers+=(--peer-bin "$name=$bin/$name")
done
cargo bench --bench transfer -- --tiny --work big,medium --peers "${peers[@]}" --only wdt,escp,bbcp,mscp
