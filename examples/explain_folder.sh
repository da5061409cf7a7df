#!/usr/bin/env bash
# Explain every picture of a folder: examples/explain_folder.sh FOLDER [OUTPUT] [OPTION...]
# Options are handed on, for example: examples/explain_folder.sh photos maps --category top
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?usage: explain_folder.sh FOLDER [OUTPUT] [OPTION...]}
output=${2:-output}
shift $(($# < 2 ? $# : 2))
exec "${PYTHON:-python}" "$here/vit_explain.py" --image_path "$folder" --output_dir "$output" "$@"
