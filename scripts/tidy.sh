#!/usr/bin/env bash
# House rules that no compiler checks. Prints every breach, then fails.
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"

git rev-parse --is-inside-work-tree >/dev/null 2>&1 || {
    say "tidy: not a git checkout, so there is no list of files to judge"
    exit 0
}

# Without it the right side of a pipe is a process of its own, and its counting is lost.
shopt -s lastpipe
breaches=0
# rule SENTENCE, with the offending lines on standard input.
rule() {
    local lines
    lines=$(cat)
    [ -n "$lines" ] || return 0
    breaches=$((breaches + 1))
    printf '%s\n' "$1" "$lines" | sed '2,$s/^/    /' | head -n 20 >&2
}

# New files count before they are committed.
files() {
    git ls-files --cached --others --exclude-standard -- "$@" 2>/dev/null | while read -r file; do [ ! -f "$file" ] || printf '%s\n' "$file"; done
}
matches() { # matches REGEX PATHSPEC...
    local regex=$1
    shift
    files "$@" | { xargs -r -d '\n' grep -nHIE -- "$regex" || true; }
}

# Only digits in the lengths that colours have, so that links to "#photos" pass.
matches '(^|["'\''`:, (])#([0-9a-fA-F]{3,4}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})\b' 'frontend/*.rs' 'frontend/*.html' 'style/*.css' ':!style/tokens.css' |
    rule "colours are named in style/tokens.css and used by name elsewhere:"
matches '(^|[^[:alnum:]_:-])style=' 'frontend/*.rs' 'frontend/*.html' |
    rule "styles belong in style/, not in attributes (style:name=... for a measured value is fine):"
files '*.rs' '*.css' '*.cu' '*.cuh' | { xargs -r -d '\n' wc -l || true; } | awk '$2 != "total" && $1 > 600' |
    rule "files over 600 lines; split them by what they are about:"

# depends PACKAGE REGEX: which forbidden crates a member pulls in, on any platform.
depends() {
    cargo tree --locked -p "$1" -e normal --target "$2" --prefix none 2>/dev/null | awk '{ print $1 }' | sort -u | grep -E "^($3)" || true
}
cargo tree --locked -p app >/dev/null || die "cargo tree failed" "cargo fetch --locked"
for platform in x86_64-unknown-linux-gnu wasm32-unknown-unknown; do
    depends app $platform 'web-sys|js-sys|axum|tokio|candle|cudarc' | rule "app is for browser and native side alike, and must not depend on ($platform):"
done
depends web x86_64-unknown-linux-gnu 'candle|cudarc|trainer' | rule "web knows the trainer as a program only, and must not depend on:"

# Files hold for every machine: no one's own folders, and no registry by address (the ordinary clients know theirs).
matches '(^|[^[:alnum:]_./~-])/(root|w[o]rk|home/[a-z]+)/' ':!*.lock' ':!tests/fixtures' | rule "paths of one machine:"
matches '//(static|index|registry|files|deb|security|pypi|snapshot)\.[a-z.-]+\.(org|io|com|net)' ':!*.lock' | rule "registries by address:"

[ "$breaches" = 0 ] || die "tidy: $breaches house rules broken"
