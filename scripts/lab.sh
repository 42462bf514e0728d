#!/usr/bin/env bash
# A long link on one machine: namespaces NAME-a (10.77.0.1) and NAME-b (10.77.0.2) with a delay, a rate, a queue and losses
# between them. netem does it where the kernel has it, scripts/wanlab elsewhere; both take the same words.
#
#   scripts/lab.sh up     [--rtt 100ms] [--rate 1gbit] [--loss 0.01%] [--jitter 5ms] [--queue 1.0bdp|SIZE] [--mtu 1500]
#                         [--tcp-buf 256m] [--cc cubic] [--seed N] [--with netem|wanlab]
#   scripts/lab.sh set    [--rtt T] [--rate R] [--loss P] [--jitter T] [--queue Q]      while it is up; what is not named stays
#   scripts/lab.sh cut    --for 5s                                                      an outage
#   scripts/lab.sh status                                                               what it is, and its counters
#   scripts/lab.sh down                                                                 takes it away
#
#   --name NAME (before or after the verb) tells several labs apart [lab]
#
# Then: ip netns exec lab-b longhaul agent ..., ip netns exec lab-a longhaul cp .... Needs root. Loss applies to each packet,
# in each direction; the queue is drop-tail, in bytes. `--cc` is the namespaces' default and has to be allowed on the machine
# (net.ipv4.tcp_allowed_congestion_control). A netem link counts its queue in packets of the MTU, and its kernel segments
# nothing in hardware, so that a loss takes one packet and not 64 KiB of them.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
usage() { sed -n '2,19s/^# \{0,1\}//p' "$0"; }
fail() { echo "lab: $1" >&2; exit "${2:-1}"; }

verb= name=lab with= cut_for=
declare -A said=() is=([rtt]=0ms [rate]=0 [loss]=0% [jitter]=0ms [queue]=1.0bdp [mtu]=1500 [seed]=1)
while [ $# -gt 0 ]; do
    case "$1" in
    up | set | cut | status | down) [ -z "$verb" ] || fail "one verb at a time" 2; verb=$1; shift ;;
    --name) name=${2:?--name NAME}; shift 2 ;;
    --with) with=${2:?--with netem or wanlab}; shift 2 ;;
    --for) cut_for=${2:?--for TIME}; shift 2 ;;
    --rtt | --rate | --loss | --jitter | --queue | --mtu | --tcp-buf | --cc | --seed) said[${1#--}]=${2:?$1 VALUE}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
    esac
done
[ -n "$verb" ] || { usage >&2; exit 2; }
[[ "$name" =~ ^[a-z][a-z0-9]{0,11}$ ]] || fail "--name: a letter, then letters and digits, twelve at most" 2
case "$with" in '' | netem | wanlab) ;; *) fail "--with netem or wanlab" 2 ;; esac
[ "$(id -u)" -eq 0 ] || fail "namespaces need root"

run=/run/longhaul-lab
record=$run/$name.link   # `key=value` lines of a lab that is up
program=$here/wanlab/target/release/wanlab

# TIME in ms, RATE in bit/s, SIZE in bytes; a number of awk.
to_number() {
    awk -v text="$1" -v kind="$2" 'BEGIN {
        number = text + 0; unit = tolower(text); sub(/^[0-9.]+/, "", unit)
        t["ms"] = 1; t["us"] = 0.001; t["s"] = 1000; t[""] = 1000
        r["gbit"] = 1e9; r["mbit"] = 1e6; r["kbit"] = 1e3; r[""] = 1
        s["k"] = 1024; s["m"] = 1048576; s["g"] = 1073741824; s["kib"] = 1024; s["mib"] = 1048576; s["gib"] = 1073741824; s[""] = 1
        c["%"] = 1; c[""] = 100
        if (kind == "time") f = (unit in t) ? t[unit] : -1
        if (kind == "rate") f = (unit in r) ? r[unit] : -1
        if (kind == "size") f = (unit in s) ? s[unit] : -1
        if (kind == "chance") f = (unit in c) ? c[unit] : -1
        if (f < 0 || text !~ /^[0-9.]/) exit 1
        printf "%.9g\n", number * f
    }' || fail "$1 is no $2" 2
}

# What one direction of a netem link is told.
netem_words() {
    local rtt rate loss jitter queue bdp packets
    # Each on its own line: of several only the last one's failure would count.
    rtt=$(to_number "${is[rtt]}" time)
    rate=$(to_number "${is[rate]}" rate)
    loss=$(to_number "${is[loss]}" chance)
    jitter=$(to_number "${is[jitter]}" time)
    bdp=$(awk -v rate="$rate" -v rtt="$rtt" 'BEGIN { printf "%.0f", rate / 8 * rtt / 1000 }')
    case "${is[queue]}" in
    *bdp) queue=$(awk -v bdp="$bdp" -v n="${is[queue]%bdp}" 'BEGIN { printf "%.0f", n * bdp }') ;;
    *) queue=$(to_number "${is[queue]}" size) ;;
    esac
    # netem's limit counts what waits for the rate and what is under way for half a round trip.
    packets=$(awk -v q="$queue" -v bdp="$bdp" -v mtu="${is[mtu]}" 'BEGIN { if (q < 65536) q = 65536; n = (q + bdp / 2) / mtu; printf "%d", n < 1000 ? 1000 : n + 1 }')
    awk -v rtt="$rtt" -v jitter="$jitter" 'BEGIN { printf "delay %.3fms", rtt / 2; if (jitter > 0) printf " %.3fms", jitter / 2 }'
    [ "$loss" = 0 ] || printf ' loss %s%%' "$loss"
    [ "$rate" = 0 ] || printf ' rate %.0f' "$rate"
    printf ' limit %s\n' "$packets"
}

netem_has() {
    local probe=labprobe$$ has=1
    ip netns add "$probe"
    ip -n "$probe" link set lo up
    ip netns exec "$probe" tc qdisc add dev lo root netem delay 1ms 2>/dev/null || has=0
    ip netns del "$probe"
    [ "$has" = 1 ]
}

sysctls_of() {
    local side=$1
    if [ -n "${is[tcp-buf]:-}" ]; then
        local bytes; bytes=$(to_number "${is[tcp-buf]}" size)
        ip netns exec "$name-$side" sysctl -qw "net.ipv4.tcp_rmem=4096 131072 $bytes" "net.ipv4.tcp_wmem=4096 65536 $bytes"
    fi
    [ -z "${is[cc]:-}" ] || ip netns exec "$name-$side" sysctl -qw "net.ipv4.tcp_congestion_control=${is[cc]}"
}

netem_up() {
    local side other host
    ip netns add "$name-a"
    ip netns add "$name-b"
    ip -n "$name-a" link add wan0 type veth peer name wan0 netns "$name-b"
    for side in a b; do
        host=$([ $side = a ] && echo 1 || echo 2)
        ip -n "$name-$side" link set lo up
        # A packet is a packet: no super-packets, of which one loss would take them all.
        ip -n "$name-$side" link set wan0 mtu "${is[mtu]}" gso_max_segs 1 up
        ip -n "$name-$side" addr add "10.77.0.$host/24" dev wan0
        ip -n "$name-$side" addr add "fd77::$host/64" dev wan0 nodad 2>/dev/null || true
        sysctls_of $side
        # shellcheck disable=SC2046
        ip netns exec "$name-$side" tc qdisc add dev wan0 root netem $(netem_words)
    done
}

wanlab_build() {
    [ -x "$program" ] && [ -z "$(find "$here/wanlab/src" "$here/wanlab/Cargo.toml" -newer "$program" -print -quit)" ] && return
    echo "lab: building scripts/wanlab" >&2
    (cd "$here/wanlab" && cargo build --release --quiet --target-dir target) || fail "scripts/wanlab does not build"
}

wanlab_up() {
    wanlab_build
    local words=(--name "$name" --quiet) key
    for key in rtt rate loss jitter queue mtu seed; do words+=("--$key" "${is[$key]}"); done
    [ -z "${is[tcp-buf]:-}" ] || words+=(--tcp-buf "${is[tcp-buf]}")
    [ -z "${is[cc]:-}" ] || words+=(--cc "${is[cc]}")
    setsid "$program" up "${words[@]}" >"$run/$name.log" 2>&1 </dev/null &
    local pid=$! tries
    echo "pid=$pid" >>"$record"
    for tries in $(seq 100); do
        kill -0 $pid 2>/dev/null || { cat "$run/$name.log" >&2; fail "the emulator did not start"; }
        if ip -n "$name-b" -o -4 addr show 2>/dev/null | grep -q 10.77.0.2 && "$program" stat --name "$name" >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    fail "the emulator did not come up within 10 s; see $run/$name.log"
}

recorded() { sed -n "s/^$1=//p" "$record" 2>/dev/null | tail -1; }
load() {
    [ -e "$record" ] || fail "no lab $name is up" 4
    with=$(recorded with)
    local key
    for key in rtt rate loss jitter queue mtu seed tcp-buf cc; do
        local value; value=$(recorded "$key")
        [ -z "$value" ] || is[$key]=$value
    done
}

save() {
    local key
    echo "with=$with"
    for key in "${!is[@]}"; do echo "$key=${is[$key]}"; done
}

case "$verb" in
up)
    [ ! -e "$record" ] || fail "a lab $name is up already: scripts/lab.sh down --name $name"
    for key in "${!said[@]}"; do is[$key]=${said[$key]}; done
    # Every word is checked before anything is made.
    netem_words >/dev/null
    [ -z "${is[tcp-buf]:-}" ] || to_number "${is[tcp-buf]}" size >/dev/null
    if [ "$with" != wanlab ]; then
        if netem_has; then with=netem; elif [ "$with" = netem ]; then fail "this kernel has no netem"; else with=wanlab; fi
    fi
    mkdir -p "$run"
    save >"$record"
    # Whatever fails leaves nothing behind.
    trap 'for side in a b; do ip netns del "$name-$side" 2>/dev/null || true; done; rm -f "$record" "$run/$name.log"; rmdir "$run" 2>/dev/null || true' EXIT
    "${with}_up"
    trap - EXIT
    echo "lab $name is up ($with): ip netns exec $name-b SERVER; ip netns exec $name-a CLIENT 10.77.0.2"
    ;;
set)
    load
    [ ${#said[@]} -gt 0 ] || fail "set what?" 2
    for key in "${!said[@]}"; do
        case "$key" in mtu | tcp-buf | cc | seed) fail "--$key is settled by up" 2 ;; esac
        is[$key]=${said[$key]}
    done
    netem_words >/dev/null
    if [ "$with" = netem ]; then
        for side in a b; do
            # shellcheck disable=SC2046
            ip netns exec "$name-$side" tc qdisc change dev wan0 root netem $(netem_words)
        done
    else
        words=()
        for key in "${!said[@]}"; do words+=("--$key" "${said[$key]}"); done
        "$program" set --name "$name" "${words[@]}"
    fi
    pid=$(recorded pid)
    { save; [ -z "$pid" ] || echo "pid=$pid"; } >"$record.new"
    mv "$record.new" "$record"
    ;;
cut)
    load
    [ -n "$cut_for" ] || fail "cut --for TIME" 2
    seconds=$(awk -v ms="$(to_number "$cut_for" time)" 'BEGIN { print ms / 1000 }')
    if [ "$with" = netem ]; then
        words=$(netem_words)
        for side in a b; do
            # shellcheck disable=SC2086
            ip netns exec "$name-$side" tc qdisc change dev wan0 root netem ${words/limit/loss 100% limit}
        done
        sleep "$seconds"
        for side in a b; do
            # shellcheck disable=SC2086
            ip netns exec "$name-$side" tc qdisc change dev wan0 root netem $words
        done
    else
        "$program" cut --name "$name" --for "$cut_for"
    fi
    ;;
status)
    load
    save | sort
    if [ "$with" = netem ]; then
        for side in a b; do ip netns exec "$name-$side" tc -s qdisc show dev wan0; done
    else
        kill -0 "$(recorded pid)" 2>/dev/null || fail "its emulator has ended: see $run/$name.log, then scripts/lab.sh down --name $name"
        "$program" stat --name "$name"
    fi
    ;;
down)
    [ -e "$record" ] || { echo "no lab $name is up"; exit 0; }
    load
    pid=$(recorded pid)
    # Only what is still our emulator: a number may have been given to somebody else.
    if [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q "wanlab up .*--name $name "; then
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
    for side in a b; do ip netns del "$name-$side" 2>/dev/null || true; done
    rm -f "$record" "$run/$name.log"
    rmdir "$run" 2>/dev/null || true
    echo "lab $name is down"
    ;;
esac
