# Sourced by the other scripts: where tools are kept, which versions, and how the scripts talk.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
trap 'printf "likeness: %s stopped at line %s\n" "$0" "$LINENO" >&2' ERR

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Tools are built once per machine, not once per clone: every folder in here carries its version in its name.
cache=${LIKENESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/likeness}
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
jobs=${LIKENESS_JOBS:-$(nproc 2>/dev/null || echo 2)}

trunk_version=0.21.14
# The generated glue and the compiled page must come from one version, so the lock file decides.
wasm_bindgen_version=$(awk '/^name = "wasm-bindgen"$/ { getline; gsub(/version = |"/, ""); print; exit }' "$root/Cargo.lock")
binaryen_version=132
rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")

say() { printf '%s\n' "likeness: $*"; }
warn() { printf '%s\n' "likeness: $*" >&2; }
# die MESSAGE [COMMAND]: the second line is what a person can paste.
die() {
    warn "$1"
    [ $# -lt 2 ] || printf '    %s\n' "$2" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# at_least WANTED FOUND: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# logged NAME COMMAND...: long output goes to a file, and comes back only when the command fails.
logged() {
    local log=$cache/logs/$1.log
    shift
    mkdir -p "$cache/logs"
    if "$@" >"$log" 2>&1 </dev/null; then return 0; fi
    tail -n 25 "$log" >&2
    warn "the whole log is $log"
    return 1
}

# as_root COMMAND...: fails quietly when there is no way to be root without asking a person who isn't there.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo && { sudo -n true 2>/dev/null || { [ -t 0 ] && [ -t 1 ]; }; }; then
        sudo "$@"
    else
        return 1
    fi
}

apt_lists_fresh=
# apt_install PACKAGE...: 1 when this machine has no apt, no root, or no such package.
apt_install() {
    have apt-get || return 1
    if [ -z "$apt_lists_fresh" ]; then
        as_root apt-get update -qq >/dev/null 2>&1 || return 1
        apt_lists_fresh=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# The sysroot of the toolchain that cargo would use here has the wasm32 standard library.
native_has_wasm() {
    [ "${LIKENESS_WASM_STD:-}" != debian ] || return 1
    local dir
    dir=$(cd "$root" && rustc --print target-libdir --target wasm32-unknown-unknown 2>/dev/null) || return 1
    compgen -G "$dir/libstd-*.rlib" >/dev/null
}

# Name of the toolchain that the fallback of setup.sh made and linked, if there is one.
linked_wasm_toolchain() {
    local name
    name=$(cat "$cache/wasm-toolchain" 2>/dev/null) || return 1
    # The linker is a link into rustup's own toolchain, which may be gone by now.
    [ -x "$cache/$name/usr/bin/rustc" ] && compgen -G "$cache/$name/usr/lib/rustlib/*/bin/rust-lld" >/dev/null &&
        [ -x "$(compgen -G "$cache/$name/usr/lib/rustlib/*/bin/rust-lld")" ] || return 1
    printf '%s\n' "$name"
}

# Folders of the page's tools, first on PATH while the page is built.
page_tools_path() {
    printf '%s' "$cache/trunk-$trunk_version/bin:$cache/wasm-bindgen-$wasm_bindgen_version/bin:$cache/binaryen-$binaryen_version/bin"
}

gpu_answers() { have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# Home of an installed CUDA toolkit; nothing when there is none.
cuda_toolkit() {
    local dir
    for dir in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda; do
        if [ -n "$dir" ] && [ -x "$dir/bin/nvcc" ]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done
    if have nvcc; then
        dir=$(readlink -f "$(command -v nvcc)")
        dirname "$(dirname "$dir")"
        return 0
    fi
    return 1
}
