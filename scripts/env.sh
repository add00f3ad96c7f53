# Source this in bash to build or test the page by hand: `. scripts/env.sh`.
# It installs nothing (scripts/setup.sh does) and leaves CARGO_TARGET_DIR alone; use target/wasm for wasm32 builds,
# because the wasm toolchain may be another compiler than the native one, and the two would empty each other's caches.
# shellcheck shell=bash

_likeness_page() {
    # In a subshell, so that common.sh's shell options and names don't leak into an interactive shell.
    (
        # shellcheck source=scripts/common.sh
        . "$(dirname "${BASH_SOURCE[0]}")/common.sh"
        # shellcheck disable=SC2016
        printf 'export PATH=%q:"$PATH"\n' "$(page_tools_path)"
        # The linked toolchain is needed only where rustup could not bring the wasm32 standard library.
        if ! native_has_wasm && name=$(linked_wasm_toolchain); then
            printf 'export RUSTUP_TOOLCHAIN=%q\n' "$name"
        fi
        # `1` is what most people set, and Trunk 0.21 takes only true or false.
        printf 'unset NO_COLOR\n'
    )
}
eval "$(_likeness_page)"
unset -f _likeness_page
