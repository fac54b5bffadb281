#!/usr/bin/env bash
# A client without Python: `buf curl` asks the server for its schema by reflection.
#   bash docs/examples/animate.sh HOST:PORT PICTURE MOTION OUTPUT.mp4
# A motion that ends in .npz or .json is keypoints, any other a video. Files of over 1 MiB are sent in chunks.
set -euo pipefail
server=$1 picture=$2 motion=$3 output=$4
case $motion in
  *.npz | *.json) kind=MOTION_KIND_KEYPOINTS ;;
  *) kind=MOTION_KIND_VIDEO ;;
esac

size() { wc -c <"$1" | tr -d ' '; }
chunks() { # one message for each 768 KiB of a file, in base64
  split -b 786432 --filter "printf '{\"upload\": {\"$2\": \"%s\"}}\n' \"\$(base64 -w0)\"" "$1"
}
requests() {
  printf '{"upload": {"header": {"motionKind": "%s", "pictureBytes": %s, "motionBytes": %s}}}\n' \
    "$kind" "$(size "$picture")" "$(size "$motion")"
  chunks "$picture" picture
  chunks "$motion" motion
}

requests |
  buf curl --http2-prior-knowledge --protocol grpc --data @- \
    "http://$server/mimicmotion.v1.AnimationService/Animate" |
  while read -r line; do
    case $line in
      '"data": '*) line=${line#'"data": "'}; base64 -d <<<"${line%%\"*}" >&3 ;; # a piece of the video
      '"stage": '*) stage=${line#'"stage": "'}; echo "${stage%%\"*}" >&2 ;;
    esac
  done 3>"$output"
