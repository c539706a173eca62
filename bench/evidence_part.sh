#!/bin/sh
# A trial made in parts: what 07 reads of runs whose weights stay behind (records, hashes, losses of
# windows; token by token those of the base's seeds), and the teacher; packed and unpacked. The same text
# must be in both folders (tokens are made again to the same bits).
#   sh bench/evidence_part.sh pack outputs/small part.tar.xz '50m-warm*-4M'
#   sh bench/evidence_part.sh unpack outputs/small part.tar.xz
set -eu
how=$1 folder=$2 archive=$(realpath "$3") base=${4:-}
cd "$folder"
case $how in
pack)
    {
        find results hashes tables -type f ! -name '07_evidence*'
        find models sweeps -type f \( -name config.json -o -name points.json \
            -o -path '*/results/*.json' -o -path '*/hashes/*.json' \)
        find models/teacher -type f # what all else learns from: other CPUs would train another one
        find scores/works scores/confirm -name '*.npy' -o -name "$base-*.npz" -o -name 'teacher-*.npz' || true
    } | sort -u | tar --create --xz --file "$archive" --files-from - ;;
unpack)
    tar --extract --xz --skip-old-files --file "$archive" ;;
esac
