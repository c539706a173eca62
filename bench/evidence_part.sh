#!/bin/sh
# A trial made in parts: what 07 reads of runs whose weights stay behind (records, hashes, losses of
# windows), packed and unpacked. The same text and teacher must be in both folders.
#   sh bench/evidence_part.sh pack outputs/small part.tar.xz
#   sh bench/evidence_part.sh unpack outputs/small part.tar.xz
set -eu
how=$1 folder=$2 archive=$(realpath "$3")
cd "$folder"
case $how in
pack)
    { find results hashes tables scores/works scores/confirm -type f ! -name '07_evidence*'
      find models sweeps -type f \( -name config.json -o -name points.json \
          -o -path 'sweeps/*/results/*' -o -path 'sweeps/*/hashes/*' \); } | sort | \
        tar --create --xz --file "$archive" --files-from - ;;
unpack)
    tar --extract --skip-old-files --file "$archive" ;;
esac
