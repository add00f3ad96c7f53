#!/usr/bin/env bash
# What Likeness takes, in one table: its figures, what they cannot go below, and PyTorch's from the same minute.
#   bench.sh cuda    SD 1.5 on this machine's GPU: a step, memory, sampling, start, the tutorial's whole run
#   bench.sh cpu     the starter on two cores: a step, sampling
# PROGRAM=... is the trainer that is measured. PyTorch is measured where python3 has torch, diffusers and transformers.
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"

program=${PROGRAM:-$target/release/likeness-trainer}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# ours NAME ARGUMENT...: a bench; what it says to people is shown, its line of JSON is kept.
ours() {
    local name=$1
    shift
    "$program" bench "$@" | tee "$scratch/$name.said" | grep -v '^{' || true
    grep '^{' "$scratch/$name.said" >"$scratch/$name"
}

# A number of a bench's line; nothing where there is none.
value() { sed -n "s/.*\"$2\": *\([0-9.eE+-]*\).*/\1/p" "$scratch/$1" 2>/dev/null | head -n 1; }

# The least of what PyTorch's variants came to.
peer() { { grep "\"peer\": \"$1\"" "$scratch/peers" 2>/dev/null || true; } | sed -n "s/.*\"$2\": *\([0-9.eE+-]*\).*/\1/p" | sort -g | head -n 1; }

calculate() { awk "BEGIN { printf \"%.4g\", $1 }"; }

# row WHAT FIGURE FLOOR PEER
row() {
    awk -v what="$1" -v figure="$2" -v floor="$3" -v peer="$4" 'BEGIN {
        show = "%-52s %9.4g"
        printf show, what, figure
        if (floor != "") printf " %9.4g %8.2f", floor, figure / floor; else printf " %9s %8s", "-", "-"
        if (peer != "") printf " %9.4g %8.2f\n", peer, figure / peer; else printf " %9s %8s\n", "-", "-"
    }'
}

head_line() { printf '\n%-52s %9s %9s %8s %9s %8s\n' "$1" Likeness floor ratio PyTorch ratio; }

peers() {
    if python3 -c 'import torch, diffusers, transformers' 2>/dev/null; then
        say "PyTorch on the same work"
        python3 scripts/peer.py "$@" | tee "$scratch/peers" | grep -v '^{' || true
    else
        say "PyTorch with diffusers and transformers is not here, so there is nothing to compare with"
    fi
}

cuda() {
    local rate floor
    ours train train --arch sd15 --rows 2 --train_text_encoder --use_8bit_adam --steps 50 --device cuda --profile
    ours sample sample --arch sd15 --dtype fp16 --rows 4 --steps 24 --device cuda
    ours run run --arch sd15 --train_text_encoder --use_8bit_adam --device cuda
    peers --arch sd15 --device cuda --rows 2 --images 4 --sampling_steps 24
    # Matrix work alone, at the rate of one large product; memory: weights, their rests, gradients and moments alone.
    rate=$(value train matrix_flop_per_s)
    floor=$(calculate "24 * $(value sample flop_per_step) / $rate + 4 * $(value sample decoding_flop) / $rate")
    head_line "SD 1.5 at 512x512, U-Net and text encoder, 2 rows"
    row "ms a training step" "$(value train ms_per_step)" "$(value train floor_ms)" "$(peer train ms_per_step)"
    row "GiB of GPU memory in training" "$(value train peak_gib)" \
        "$(calculate "$(value train weights) + $(value train 'rests of weights') + $(value train gradients) + $(value train moments)")" \
        "$(peer train peak_gib)"
    row "s for 4 images, 24 steps, guidance 7.5, fp16" "$(value sample s_in_all)" "$floor" "$(peer sample s_in_all)"
    row "s from start of train to first step done" "$(value run first_step_s)" "" ""
    row "s for the whole run: 50 class images, 800 steps" "$(value run s_in_all)" \
        "$(calculate "0.8 * $(value train floor_ms) + 54 / 4 * 20 / 24 * $floor")" ""
}

cpu() {
    local pinned=() cores
    cores=$(nproc)
    if [ "$cores" -gt 2 ] && have taskset; then pinned=(taskset -c 0,1); fi
    # The pool has as many threads as it may use cores.
    say "on ${pinned[*]:-"$cores cores"}"
    if [ "${#pinned[@]}" -gt 0 ]; then exec "${pinned[@]}" env LIKENESS_PINNED=1 PROGRAM="$program" "$0" cpu; fi
    ours train train --arch starter --rows 2 --train_text_encoder --steps 50 --device cpu
    ours sample sample --arch starter --rows 4 --steps 24 --device cpu
    peers --arch starter --device cpu --rows 2 --images 4 --sampling_steps 24 --threads 2
    head_line "The starter on two cores, f32"
    row "ms a training step, 2 rows" "$(value train ms_per_step)" "" "$(peer train ms_per_step)"
    row "s for 4 images, 24 steps, guidance 7.5" "$(value sample s_in_all)" "" "$(peer sample s_in_all)"
}

case ${1:-} in
    cuda | cpu) "$1" ;;
    *) die "use: scripts/bench.sh cuda|cpu" ;;
esac
