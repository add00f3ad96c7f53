#!/bin/bash
# A trainer that keeps the contract and trains nothing. The recipe's negative sample prompt says how it behaves:
#   ms=N         time of a step
#   die_at=N     at step N, once: ends itself like a crash (SIGKILL); always_die_at=N: every time
#   skip_at=N    at step N: leaves the update out, as after a gradient that overflowed fp16
#   exit_at=N    at step N: says why on stderr and exits with status 1
set -u
case "$1" in
doctor)
    echo '{"trainer":"cpu","name":"CPU, pretended","why":"a test"}'
    exit ;;
inspect)
    if [ "${4:-} ${5:-}" = "--part vae" ]; then
        channels=4
        case "$3" in
        owner/vae) ;;
        wide/vae) channels=16 ;;
        *)
            echo "error: $3: lacks the VAE's weights" >&2
            exit 1 ;;
        esac
        echo '{"pretrained_vae_name_or_path":"'"$3"'","parameters":7,"latent_channels":'"$channels"',"loads_in_webuis":true,"hub":{"card":"https://hub.example.org/'"$3"'","license":"mit","bytes":9,"missing_bytes":9}}'
        exit
    fi
    if [ "$3" = wants/token ] && [ "${HF_TOKEN:-}" != hf_secretForTests ]; then
        echo '{"code":"hub_token","message":"wants/token: the Hub wants a token for it"}'
        echo "error: wants/token: the Hub wants a token for it" >&2
        exit 1
    fi
    if [ "$3" != starter ] && [ "$3" != wants/token ]; then
        echo "error: $3: there is no such model" >&2
        exit 1
    fi
    hub=
    [ "$3" = starter ] || hub=',"hub":{"card":"https://hub.example.org/wants/token","bytes":9,"missing_bytes":9}'
    echo '{"pretrained_model_name_or_path":"'"$3"'","title":"Starter","resolution":64,"parameters":7,"latent_channels":4,"loads_in_webuis":false,"defaults":{}'"$hub"'}'
    exit ;;
job)
    dir=$3
    # Only whether: the token itself is for nobody's eyes.
    [ "${HF_TOKEN:-}" = hf_secretForTests ] && touch "$dir/had_token" ;;
*) exit 2 ;;
esac
cd "$dir" || exit 2
exec 9>lock
flock -n 9 || exit 1
echo $$ >&9

told=$(sed -n 's/.*"save_sample_negative_prompt": "\([^"]*\)".*/\1/p' recipe.json)
steps=$(sed -n 's/.*"max_train_steps": \([0-9]*\).*/\1/p' recipe.json)
setting() { local value; value=$(sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" <<<"$told"); echo "${value:-$2}"; }
ms=$(setting ms 5) die_at=$(setting die_at 0) always=$(setting always_die_at 0) exit_at=$(setting exit_at 0) skip_at=$(setting skip_at 0)

# Whole lines only: a torn last one is cut off.
lines=$(grep -c '' events.jsonl)
if [ -n "$(tail -c1 events.jsonl)" ]; then
    lines=$((lines - 1))
    head -n "$lines" events.jsonl >whole && cat whole >events.jsonl && rm whole
fi
seq=$lines
say() {
    local micros=${EPOCHREALTIME/[.,]/}
    seq=$((seq + 1))
    printf '{"seq":%d,"at_ms":%s,%s}\n' "$seq" "${micros:0:-3}" "$1" >>events.jsonl
}
sample() {
    mkdir -p "samples/$1"
    printf 'full %s' "$1" >"samples/$1/0.png"
    printf 'small %s' "$1" >"samples/$1/0.preview.jpg"
    say '"type":"sample","step":'"$1"',"index":0,"count":1,"prompt":"p","seed":1,"width":8,"height":8,"file":"samples/'"$1"'/0.png","preview":"samples/'"$1"'/0.preview.jpg"'
}
export_all() {
    mkdir -p export
    printf '0123456789' >export/model.safetensors
    say '"type":"exported","step":'"$1"',"files":[{"name":"model.safetensors","format":"safetensors","bytes":10,"sha256":"84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"}]'
}

start=0
if [ -f state/step ]; then
    start=$(cat state/step)
    say '"type":"started","trainer":"cpu","device":"CPU","rewound_to":'"$start"
else
    say '"type":"started","trainer":"cpu","device":"CPU"'
    say '"type":"plan","steps":'"$steps"',"trained_parameters":7,"trained_tensors":1,"photos":1,"class_images":0,"sample_steps":[]'
    sample 0
fi
for ((step = start + 1; step <= steps; step++)); do
    [ "$ms" -gt 0 ] && sleep "$(printf '%d.%03d' $((ms / 1000)) $((ms % 1000)))"
    skipped=
    if ((skip_at > 0 && step >= skip_at)); then skipped='"loss_scale":32768.0,"skipped_updates":1,'; fi
    say '"type":"step","step":'"$step"',"loss":1.0,"instance_loss":0.5,"prior_loss":0.5,"learning_rate":1e-6,'"$skipped"'"ms":5.0'
    if ((step == skip_at)); then say '"type":"warning","code":"skipped_updates","message":"1 update was left out because a gradient overflowed fp16"'; fi
    ((step % 5 == 0)) && sample "$step"
    if ((step % 4 == 0)); then
        mkdir -p state && echo "$step" >state/step.new && mv state/step.new state/step
        say '"type":"state_saved","step":'"$step"
    fi
    if [ -e stop ]; then
        export_all "$step"
        say '"type":"stopped","step":'"$step"
        exit 130
    fi
    if ((step == die_at)) && [ ! -e died ]; then touch died; kill -9 $$; fi
    if ((step == always)); then rm -rf state; kill -9 $$; fi
    if ((step == exit_at)); then
        echo "error: the tensor unet.conv_in.weight has no gradient" >&2
        exit 1
    fi
done
export_all "$steps"
say '"type":"done","step":'"$steps"
