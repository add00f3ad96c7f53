#!/usr/bin/env bash
# Builds the page with Trunk into target/page, where crate `web` takes it from to embed it. Does nothing when no input changed.
# shellcheck source=scripts/common.sh disable=SC2031
. "$(dirname "$0")/common.sh"
cd "$root"

# Contents, not times: a fresh clone, a branch switch or a deleted file are all judged right.
fingerprint() {
    {
        printf '%s\n' "$trunk_version $wasm_bindgen_version $binaryen_version"
        find app frontend style -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        sha256sum Cargo.toml Cargo.lock Trunk.toml .cargo/config.toml scripts/build-page.sh
    } | sha256sum | cut -d ' ' -f 1
}

page=$root/target/page
stamp=$root/target/page.stamp
now=$(fingerprint)
if [ -f "$page/index.html" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$now" ]; then
    exit 0
fi

scripts/setup.sh page
# shellcheck source=scripts/env.sh
. scripts/env.sh

say "building the page (minutes the first time)"
rm -f "$stamp"
mkdir -p "$root/target"
export CARGO_TARGET_DIR=$target/wasm
# Trunk runs offline so that it can only use the tools set up here; what cargo needs is therefore fetched first.
logged fetch-page cargo fetch --locked --target wasm32-unknown-unknown ||
    die "could not fetch the page's crates" "cargo fetch --locked --target wasm32-unknown-unknown"
logged page trunk build --release --offline --config Trunk.toml ||
    die "the page did not build; to see all of it:" ". scripts/env.sh && CARGO_TARGET_DIR=$CARGO_TARGET_DIR trunk build --release --offline"
[ -f "$page/index.html" ] || die "Trunk reported success but left no $page/index.html"
printf '%s\n' "$now" >"$stamp"
say "page built: $(du -sh "$page" | cut -f 1) in target/page"
