#!/bin/sh
# Holds the committed OpenAPI document against a generic validator (PyPI: openapi-spec-validator). Says so and passes where
# it is not installed; OPENAPI_VALIDATOR names another place for it.
set -eu
cd "$(dirname "$0")/.."
validator=${OPENAPI_VALIDATOR:-openapi-spec-validator}
if ! command -v "$validator" >/dev/null 2>&1; then
    echo "skipped: openapi-spec-validator is not installed (python3 -m venv V && V/bin/pip install openapi-spec-validator)"
    exit 0
fi
"$validator" src/control/main_role/openapi.json
