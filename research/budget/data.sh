#!/usr/bin/env bash
# The data of the study, into the folder DATA: bash research/budget/data.sh DATA PYTHON
# As root on Debian; fashion-mnist is installed, the rest is unpacked. 280 MB.
set -euo pipefail
data=$(realpath -m "$1") python=${2:-python3} here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$data/packages" && cd "$data/packages"
apt-get install -y -qq --no-install-recommends dataset-fashion-mnist </dev/null
apt-get download -q budgie-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds
for package in *.deb; do dpkg -x "$package" unpacked; done
walls=unpacked/usr/share/backgrounds
mkdir -p "$data/photos" "$data/photos-free"
cp $walls/budgie/*.jpg $walls/mate/nature/*.jpg $walls/*.jpg "$data/photos"
rm "$data"/photos/{valley-midnight,waves-midnight,Fossa_*,Infinite-Sea_*,Painting-Colors_*,umang_*}.jpg # drawings
cp $walls/budgie/*.jpg $walls/{aitzgorri,friends,life,picosdeeuropa,sunset,Picture_,seeding,Wine}*.jpg "$data/photos-free"
rm "$data"/photos-free/{valley,waves}-midnight.jpg
for artist in google twitter; do
    npm pack --silent emoji-datasource-$artist@16.0.0
    mkdir -p "$data/emoji-$artist"
    tar xzf emoji-datasource-$artist-16.0.0.tgz -C "$data/emoji-$artist" package/img/$artist/64
done
cd "$here"
"$python" -m research.translation.emoji_folders "$data/emoji-google/package" "$data/emoji-twitter/package" --out "$data/emoji-pairs"
for folder in photos photos-free; do echo "$folder: $(find "$data/$folder" -name '*.jpg' | wc -l) photographs"; done
