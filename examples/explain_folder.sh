#!/usr/bin/env bash
# Explain every picture of a folder: examples/explain_folder.sh FOLDER [OUTPUT] [OPTION...]
# Options are handed on, for example: examples/explain_folder.sh photos maps --category top
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?usage: explain_folder.sh FOLDER [OUTPUT] [OPTION...]}
output=${2:-output}
shift $(($# < 2 ? $# : 2))

failed=0
shopt -s nullglob nocaseglob
for picture in "$folder"/*.{jpg,jpeg,png,webp,bmp,gif,tif,tiff}; do
    "${PYTHON:-python}" "$here/vit_explain.py" --image_path "$picture" --output_dir "$output" "$@" ||
        failed=$((failed + 1))
done
[ "$failed" -eq 0 ] || echo "explain_folder: $failed pictures could not be explained" >&2
[ "$failed" -eq 0 ]
