#!/usr/bin/env bash
# Download COCO 2017: scripts/download_coco.sh [DIR]
# DIR (data/coco of this repository) gets train2017/, val2017/ and annotations/: 19 GiB to download,
# 38 GiB of disk while it unpacks. Run it again after an interruption: it goes on where it stopped.
# COCO_URL is a mirror to download from; COCO_CHECKSUMS a file like md5sum's, if its zips differ.
set -euo pipefail

case ${1-} in -*)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
dir=${1:-$(dirname "$0")/../data/coco}
url=${COCO_URL:-http://images.cocodataset.org}
checksums="
cced6f7f71b7629ddf16f17bbcfab6b2  train2017.zip
442b8da7639aecaf257c1dceb8ba8c80  val2017.zip
f4bbac642086de4f52a3fdda2de5fa2c  annotations_trainval2017.zip"

die() {
    echo "error: $*" >&2
    exit 1
}

# has_md5 FILE NAME: whether FILE is what NAME should be.
has_md5() {
    local md5
    md5=$(awk -v name="$2" '$2 == name {print $1}' <<<"$checksums")
    [ -n "$md5" ] || die "no checksum for $2 in $COCO_CHECKSUMS"
    echo "checking $2"
    md5sum --status --check <<<"$md5  $1"
}

# need_space BYTES WHAT
need_space() {
    local free
    free=$(($(df -Pk "$dir" | awk 'NR == 2 {print $4}') * 1024))
    [ "$free" -ge "$1" ] || die "$2 needs $(($1 >> 20)) MiB in $dir, $((free >> 20)) MiB are free"
}

# fetch FOLDER/NAME.zip RESULT: download, check and unpack one zip, which holds the folder RESULT.
fetch() {
    local name=${1##*/} part size have=0
    part=$dir/$name.part
    if [ -d "$dir/$2" ]; then
        echo "$dir/$2: already there"
        return
    fi
    if [ ! -f "$dir/$name" ]; then
        size=$(curl -sfIL "$url/$1" | tr -d '\r' | awk 'tolower($1) == "content-length:" {n = $2}
            END {print n}') || die "cannot reach $url/$1"
        [ -n "$size" ] || die "$url/$1: the server does not say how large it is"
        [ ! -f "$part" ] || have=$(wc -c <"$part")
        need_space $((2 * size - have)) "$name and what it holds"
        if [ "$have" -lt "$size" ]; then
            echo "downloading $url/$1"
            curl -fL --retry 5 --continue-at - --output "$part" "$url/$1" ||
                die "the download of $url/$1 stopped: run this again to go on"
        fi
        if ! has_md5 "$part" "$name"; then
            rm "$part"
            die "$url/$1 has a wrong checksum and was removed: run this again"
        fi
        mv "$part" "$dir/$name"
    fi
    echo "unpacking $name"
    rm -rf "$dir/$2.part"
    need_space "$(unzip -Zt "$dir/$name" | awk '{print $3}')" "unpacking $name"
    unzip -q "$dir/$name" -d "$dir/$2.part" || die "cannot unpack $dir/$name"
    mv "$dir/$2.part/$2" "$dir/$2"
    rmdir "$dir/$2.part"
    rm "$dir/$name"
}

for tool in curl unzip md5sum; do
    command -v "$tool" >/dev/null || die "$tool is not installed (on Debian or Ubuntu: apt install curl unzip)"
done
if [ -n "${COCO_CHECKSUMS-}" ]; then
    checksums=$(cat "$COCO_CHECKSUMS") || die "cannot read $COCO_CHECKSUMS"
fi
mkdir -p "$dir" || die "cannot make $dir"
fetch annotations/annotations_trainval2017.zip annotations
fetch zips/val2017.zip val2017
fetch zips/train2017.zip train2017
echo "$dir: COCO 2017 is complete"
