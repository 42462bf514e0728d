#!/usr/bin/env bash
# Longhaul against other tools on this machine, taking turns: `cargo bench --bench transfer` row by row, with every peer that
# is installed. Writes tables, JSON lines and bar charts to tuning/runs/DATE-HOST/ (or --out DIR).
#
#   compare.sh [--rows LIST] [--rounds 5] [--disk DIR] [--out DIR] [--peer-bin NAME=PATH]... [--install]
#
# Rows: memory-1g memory-4g disk-8g small-10k medium-1000 disk-small-100k one. Installs nothing unless told (--install, Debian,
# as root). DIR of --disk is where the rows on a disk work: 20 GiB must be free, and cold caches need root.
set -euo pipefail
cd "$(dirname "$0")/.."

rows="memory-1g memory-4g disk-8g small-10k medium-1000 disk-small-100k one"
rounds=5
disk=/var/tmp
out="tuning/runs/$(date +%F)-$(uname -n)"
install=no
peer_bins=()
usage() { sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'; }
while [ $# -gt 0 ]; do
    case "$1" in
        --rows) rows="${2//,/ }" && shift 2 ;;
        --rounds) rounds="$2" && shift 2 ;;
        --disk) disk="$2" && shift 2 ;;
        --out) out="$2" && shift 2 ;;
        --peer-bin) peer_bins+=(--peer-bin "$2") && shift 2 ;;
        --install) install=yes && shift ;;
        -h | --help) usage && exit 0 ;;
        *) echo "compare.sh: unknown option $1" >&2 && usage >&2 && exit 2 ;;
    esac
done

packages="iperf3 rsync socat curl nginx-light aria2 rclone xrootd-server xrootd-client globus-gass-copy-progs globus-gridftp-server-progs openssh-server openssh-client"
if [ "$install" = yes ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
fi

version() {
    case "$1" in
        xrdcp) xrdcp --version 2>&1 | head -1 ;;
        sshd) ssh -V 2>&1 ;;
        nginx) PATH="$PATH:/usr/sbin" nginx -v 2>&1 ;;
        socat) socat -V 2>/dev/null | sed -n 2p ;;
        globus-url-copy) globus-url-copy -version 2>&1 | head -1 ;;
        *) "$1" --version 2>/dev/null | head -1 ;;
    esac
}

mkdir -p "$out"
if [ ! -e "$out/README.md" ]; then
    {
        echo "# Longhaul beside other tools, $(date +%F), $(uname -n)"
        echo
        echo "\`scripts/compare.sh\`, source and destination on one machine over loopback, candidates taking turns; how it is made"
        echo "fair: \`benches/README.md\`. Longhaul: $(git describe --always --dirty 2>/dev/null || echo unknown)."
        echo
        echo '| tool | version |'
        echo '| --- | --- |'
        for tool in iperf3 rsync tar socat curl nginx aria2c rclone xrdcp globus-url-copy sshd; do
            if PATH="$PATH:/usr/sbin" command -v "$tool" >/dev/null; then
                echo "| $tool | $(version "$tool" || true) |" # a tool may die of the pipe that head closes
            else
                echo "| $tool | not installed |"
            fi
        done
    } >"$out/README.md"
fi

for row in $rows; do
    case "$row" in
        memory-1g) how=(--work big --size 1GiB) ;;
        memory-4g) how=(--work big --size 4GiB) ;;
        disk-8g) how=(--work big --size 8GiB --cold --dir "$disk") ;;
        small-10k) how=(--work small --files 10000) ;;
        medium-1000) how=(--work medium --size 1000MiB) ;;
        disk-small-100k) how=(--work small --files 100000 --cold --dir "$disk") ;;
        one) how=(--work one) ;;
        *) echo "compare.sh: no row is called $row" >&2 && exit 2 ;;
    esac
    echo "== $row"
    cargo bench --bench transfer -- "${how[@]}" --rounds "$rounds" --peers "${peer_bins[@]}" --name "$row" --out "$out"
done
echo "written: $out"
