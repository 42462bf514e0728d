#!/usr/bin/env bash
# Runs tests in their long form (LONGHAUL_LONG=1) and writes what they counted into the table of SAFETY.md.
#
#   scripts/long-lane.sh              every lane, an hour or two on two cores
#   scripts/long-lane.sh sim crash    those lanes; the rows of the others stay
#   scripts/long-lane.sh --short ...  the sizes of CI, nothing is written: to try the lanes
#
# Tests print lines `COUNT name=value ...`. A lane that fails writes nothing, and the script ends with 1. Needs what
# `.ci/run` needs, root included: a test that is skipped fails its lane.
set -euo pipefail
cd "$(dirname "$0")/.."

export CI=true CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
short=
[ "${1:-}" = --short ] && short=1 && shift
[ -n "$short" ] || export LONGHAUL_LONG=1
lanes=("$@")
[ ${#lanes[@]} -gt 0 ] || lanes=(sim crash faults hostile fuzz service roles light planted)

out=target/long-lane
mkdir -p "$out"
host="$(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), kernel $(uname -r)"
failed=0
for lane in "${lanes[@]}"; do
    case $lane in
    planted) command="scripts/planted-bugs.sh" ;;
    # One at a time: each of them needs 16 to 40 GiB of memory or disk.
    faults) command="cargo test --release --features testing --test faults -- --nocapture --test-threads=1" ;;
    *) command="cargo test --release --features testing --test $lane -- --nocapture --test-threads=2" ;;
    esac
    began=$SECONDS
    echo "== $lane: $command"
    if $command >"$out/$lane.log" 2>&1; then
        echo "   ok, $(((SECONDS - began) / 60)) min"
    else
        echo "   FAILED, see $out/$lane.log" >&2
        failed=1
        continue
    fi
    {
        echo "head|$(date -u +%F)|$(git rev-parse --short HEAD)|$host|$(((SECONDS - began + 59) / 60))"
        grep -a -o 'COUNT .*' "$out/$lane.log" | sed 's/^COUNT //' | sort
    } >"$out/$lane.counts"
done

[ -z "$short" ] || exit $failed
table=$(
    echo "| Lane | Counts | Run |"
    echo "|---|---|---|"
    for file in "$out"/*.counts; do
        lane=$(basename "$file" .counts)
        IFS='|' read -r _ day commit where minutes <"$file"
        run="$day, commit $commit, $minutes min, $where"
        tail -n +2 "$file" | while read -r line; do
            echo "| $lane | $(sed 's/_/ /g; s/=/ /g; s/ \([0-9][0-9.]*\)/ \1,/g; s/,$//' <<<"$line") | $run |"
            run="same"
        done
    done
    # Lanes that have not run in this folder keep the rows they have.
    sed -n '/<!-- counts begin/,/<!-- counts end/p' SAFETY.md | { grep '^| [a-z]' || true; } | while IFS= read -r row; do
        lane=$(cut -d '|' -f 2 <<<"$row" | tr -d ' ')
        [ -e "$out/$lane.counts" ] || echo "$row"
    done
)
table=$table awk '
    /<!-- counts end/ { skip = 0 }
    !skip { print }
    /<!-- counts begin/ { print ""; print ENVIRON["table"]; print ""; skip = 1 }
' SAFETY.md >"$out/SAFETY.md"
mv "$out/SAFETY.md" SAFETY.md
exit $failed
