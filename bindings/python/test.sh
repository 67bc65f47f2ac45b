#!/usr/bin/env bash
# Builds the module beside the command's own build and runs its tests, without installing anything.
set -euo pipefail
cd "$(dirname "$0")/../.."
package=target/python-test
cargo build --release --locked --manifest-path bindings/python/Cargo.toml --features extension-module --target-dir target
mkdir -p "$package"
cp -r bindings/python/python/tessera "$package/"
cp target/release/lib_tessera.so "$package/tessera/_tessera.abi3.so"
[ -d "$package/pytest" ] || python3 -m pip install --quiet --target "$package" pytest
PYTHONPATH="$package" python3 -m pytest -q -p no:cacheprovider bindings/python/tests
