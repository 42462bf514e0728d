#!/usr/bin/env bash
# Sets on this host what `longhaul doctor` advises, and puts everything back. Until the next boot; for good, see tuning/host/.
#
#   scripts/host-tune.sh show   [OPTIONS]    what is, what would be set; changes nothing
#   scripts/host-tune.sh apply  [OPTIONS]    writes the old values down, then sets the new ones
#   scripts/host-tune.sh revert [OPTIONS]    sets the old values back; what somebody else changed since then stays
#
#   --dev IF       also IF's queueing discipline (fq), rings (the largest) and segmentation offloads
#   --only net     nothing but net.*: for a network namespace
#   --state FILE   where the old values are kept [/var/lib/longhaul/host-tune.state]
#
# Values are those of tuning/host/90-longhaul.conf; a limit that is higher already stays. Needs root, but for `show`.
set -euo pipefail
conf="$(cd "$(dirname "$0")/.." && pwd)/tuning/host/90-longhaul.conf"
state=/var/lib/longhaul/host-tune.state
dev= only=

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0"; }
fail() { echo "host-tune: $1" >&2; exit "${2:-1}"; }

[ $# -gt 0 ] || { usage >&2; exit 2; }
verb=$1; shift
while [ $# -gt 0 ]; do
    case "$1" in
    --dev) dev=${2:?--dev IF}; shift 2 ;;
    --only) [ "${2:-}" = net ] || fail "--only net" 2; only=net; shift 2 ;;
    --state) state=${2:?--state FILE}; shift 2 ;;
    *) usage >&2; exit 2 ;;
    esac
done
case "$dev" in */* | .*) fail "no interface is called $dev" 2 ;; esac
[ -z "$dev" ] || [ -e "/sys/class/net/$dev" ] || fail "no interface is called $dev" 2

# Each kind of setting: how it is read and set. An empty answer: it is not there, or not for this process.
file_of() { echo "/proc/sys/${1//.//}"; }
read_sysctl() { [ -r "$(file_of "$1")" ] && tr -s '\t ' ' ' <"$(file_of "$1")" | sed 's/ $//' || true; }
write_sysctl() { printf '%s\n' "$2" >"$(file_of "$1")"; }
read_file() { [ -r "$1" ] && { sed -n 's/.*\[\(.*\)\].*/\1/p;t;p' "$1" | head -1; } || true; }
write_file() { printf '%s\n' "$2" >"$1"; }
read_qdisc() { command -v tc >/dev/null && tc qdisc show dev "$1" root 2>/dev/null | awk 'NR == 1 { print $2 }' || true; }
write_qdisc() {
    # What an interface begins with has no handle, and comes back when ours is removed.
    case "$2" in
    fq | mq) tc qdisc replace dev "$1" root "$2" ;;
    *) tc qdisc del dev "$1" root ;;
    esac
}
# KEY is IF:rx or IF:tx.
read_ring() {
    command -v ethtool >/dev/null || return 0
    ethtool -g "${1%%:*}" 2>/dev/null | awk -v side="${1##*:}" '/^Current/ { now = 1 } now && tolower($1) == side ":" { print $2 }' || true
}
write_ring() { ethtool -G "${1%%:*}" "${1##*:}" "$2"; }
# KEY is IF:tso, IF:gso or IF:gro.
read_offload() {
    command -v ethtool >/dev/null || return 0
    local long
    case "${1##*:}" in
    tso) long=tcp-segmentation-offload ;;
    gso) long=generic-segmentation-offload ;;
    gro) long=generic-receive-offload ;;
    esac
    ethtool -k "${1%%:*}" 2>/dev/null | awk -v long="$long:" '$1 == long { print $2 }' || true
}
write_offload() { ethtool -K "${1%%:*}" "${1##*:}" "$2"; }

# The higher of two limits; of three numbers it is the third that counts.
at_least() {
    local now=$1 wanted=$2
    if [ "${now##* }" -ge "${wanted##* }" ] 2>/dev/null; then echo "$now"; else echo "$wanted"; fi
}

# Lines `kind<TAB>key<TAB>wanted` of everything that is there.
plan() {
    local key value now name all cpu side max
    while IFS='=' read -r key value; do
        key=$(echo "$key" | tr -d ' ') value=$(echo "$value" | sed 's/^ *//; s/ *$//')
        case "$key" in '' | \#*) continue ;; esac
        [ "$only" = net ] && case "$key" in net.*) ;; *) continue ;; esac
        now=$(read_sysctl "$key")
        [ -n "$now" ] && [ -w "$(file_of "$key")" -o "$verb" = show ] || { echo "host-tune: $key is not there, or not to be set here" >&2; continue; }
        case "$key" in
        net.core.*_max | net.core.netdev_max_backlog | net.ipv4.tcp_*mem) value=$(at_least "$now" "$value") ;;
        esac
        printf 'sysctl\t%s\t%s\n' "$key" "$value"
    done <"$conf"
    # Choosing is the program's; being allowed to is the host's. The list is one of the machine, not of a namespace.
    now=$(read_sysctl net.ipv4.tcp_allowed_congestion_control) all=$now
    for name in cubic bbr; do
        case " $(read_sysctl net.ipv4.tcp_available_congestion_control) " in *" $name "*) ;; *) continue ;; esac
        case " $all " in *" $name "*) ;; *) all="$all $name" ;; esac
    done
    [ -n "$now" ] && [ -w "$(file_of net.ipv4.tcp_allowed_congestion_control)" -o "$verb" = show ] &&
        printf 'sysctl\t%s\t%s\n' net.ipv4.tcp_allowed_congestion_control "$all"
    if [ "$only" != net ]; then
        local huge=/sys/kernel/mm/transparent_hugepage/enabled
        [ "$(read_file $huge)" = never ] && printf 'file\t%s\tmadvise\n' $huge
        for cpu in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
            [ -e "$cpu" ] && printf 'file\t%s\tperformance\n' "$cpu"
        done
    fi
    if [ -n "$dev" ]; then
        case "$(read_qdisc "$dev")" in
        '' | fq | mq) ;;
        *) printf 'qdisc\t%s\tfq\n' "$dev" ;;
        esac
        for side in rx tx; do
            max=$(ethtool -g "$dev" 2>/dev/null | awk -v side="$side:" 'tolower($1) == side { print $2; exit }' || true)
            [ -n "$max" ] && [ "$max" != n/a ] && printf 'ring\t%s\t%s\n' "$dev:$side" "$max"
        done
        for name in tso gso gro; do
            [ -n "$(read_offload "$dev:$name")" ] && printf 'offload\t%s\ton\n' "$dev:$name"
        done
    fi
    return 0
}

show() {
    printf '%-52s %-36s %s\n' setting now wanted
    plan | while IFS=$'\t' read -r kind key wanted; do
        now=$("read_$kind" "$key")
        printf '%-52s %-36s %s\n' "$key" "$now" "$([ "$now" = "$wanted" ] && echo "(as it is)" || echo "$wanted")"
    done
}

# vm.dirty_bytes and vm.dirty_ratio are two faces of one setting: who sets one, zeroes the other, and 0 cannot be set.
face_of() {
    case "$1" in
    vm.dirty_bytes) echo vm.dirty_ratio ;;
    vm.dirty_background_bytes) echo vm.dirty_background_ratio ;;
    esac
}

apply() {
    [ "$(id -u)" -eq 0 ] || fail "apply needs root"
    mkdir -p "$(dirname "$state")"
    touch "$state"
    local plans kind key wanted now other failed=0
    plans=$(plan)
    while IFS=$'\t' read -r kind key wanted; do
        now=$("read_$kind" "$key")
        [ "$now" = "$wanted" ] && continue
        # Written down before it is changed, and only the first time: a second apply must not take ours for the old one.
        if ! cut -f1,2 "$state" | grep -qxF "$kind"$'\t'"$key"; then
            other=$(face_of "$key")
            if [ -n "$other" ] && [ "$now" = 0 ]; then
                printf '%s\t%s\t%s\t%s\t%s\n' "$kind" "$key" "$now" "$wanted" "$other=$(read_sysctl "$other")" >>"$state"
            else
                printf '%s\t%s\t%s\t%s\t\n' "$kind" "$key" "$now" "$wanted" >>"$state"
            fi
            sync "$state"
        fi
        if "write_$kind" "$key" "$wanted" 2>/dev/null && [ "$("read_$kind" "$key")" = "$wanted" ]; then
            echo "$key: $now -> $wanted"
        else
            echo "$key: stays $("read_$kind" "$key"); $wanted was refused" >&2
            failed=1
        fi
    done <<<"$plans"
    echo "the old values are in $state; undo: $0 revert$([ "$state" = /var/lib/longhaul/host-tune.state ] || echo " --state $state")"
    return "$failed"
}

revert() {
    [ "$(id -u)" -eq 0 ] || fail "revert needs root"
    [ -s "$state" ] || { echo "nothing was applied: $state is not there or empty"; return 0; }
    local kind key old set face now failed=0 kept
    kept=$(mktemp)
    while IFS=$'\t' read -r kind key old set face; do
        now=$("read_$kind" "$key")
        if [ "$now" = "$old" ]; then
            continue
        elif [ "$now" != "$set" ]; then
            echo "$key: stays $now: somebody has changed it since ($set was set, $old was there before)"
        elif [ -n "$face" ] && write_sysctl "${face%%=*}" "${face#*=}" 2>/dev/null; then
            echo "$key: $now -> ${face}"
        elif [ -z "$face" ] && "write_$kind" "$key" "$old" 2>/dev/null && [ "$("read_$kind" "$key")" = "$old" ]; then
            echo "$key: $now -> $old"
        else
            echo "$key: stays $now; $old was refused" >&2
            printf '%s\t%s\t%s\t%s\t%s\n' "$kind" "$key" "$old" "$set" "$face" >>"$kept"
            failed=1
        fi
    done <"$state"
    # What could not be set back stays written down.
    if [ -s "$kept" ]; then cat "$kept" >"$state"; else rm -f "$state"; fi
    rm -f "$kept"
    return "$failed"
}

case "$verb" in
show) show ;;
apply) apply ;;
revert) revert ;;
*) usage >&2; exit 2 ;;
esac
