#!/usr/bin/env bash
# A client without Python: `buf curl` asks the server for its schema by reflection.
#   bash docs/examples/animate.sh HOST:PORT PICTURE MOTION OUTPUT.mp4 ['{"steps": 4, "frames": 8}']
# A motion that ends in .npz or .json is keypoints, any other a video. Files of over 1 MiB are sent in chunks.
# The last argument is AnimationSettings in JSON; what it does not name is the bundle's own.
set -euo pipefail
(($# >= 4)) || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
server=$1 picture=$2 motion=$3 output=$4 settings=${5-}
case $motion in
  *.npz | *.json) kind=MOTION_KIND_KEYPOINTS ;;
  *) kind=MOTION_KIND_VIDEO ;;
esac

size() { wc -c <"$1" | tr -d ' '; }
chunks() { # one message for each 768 KiB of a file, in base64
  split -b 786432 --filter "printf '{\"upload\": {\"$2\": \"%s\"}}\n' \"\$(base64 -w0)\"" "$1"
}
picture_bytes=$(size "$picture")
motion_bytes=$(size "$motion")
requests() {
  printf '{"upload": {"header": {"motionKind": "%s", "pictureBytes": %s, "motionBytes": %s, "settings": %s}}}\n' \
    "$kind" "$picture_bytes" "$motion_bytes" "${settings:-"{}"}"
  chunks "$picture" picture
  chunks "$motion" motion
}

trap 'rm -f "$output.part"' EXIT # the video appears whole or not at all
requests |
  buf curl --http2-prior-knowledge --protocol grpc --data @- \
    "http://$server/mimicmotion.v1.AnimationService/Animate" |
  while read -r line; do
    case $line in
      '"data": '*) line=${line#'"data": "'}; base64 -d <<<"${line%%\"*}" >&3 ;; # a piece of the video
      '"stage": '*) stage=${line#'"stage": "'}; echo "${stage%%\"*}" >&2 ;;
    esac
  done 3>"$output.part"
mv "$output.part" "$output"
