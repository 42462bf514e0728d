#!/usr/bin/env bash
# Stands in for wdt, escp, bbcp and mscp, by the name under which it is called, to check how `cargo bench --bench transfer` calls
# them: it takes the options of their documentation and no others, and moves the bytes with cp, scp or cat. It says nothing
# about the tools themselves. See check-peers.sh.
set -euo pipefail
name="$(basename "$0")"
fail() { echo "$name (stand-in): $*" >&2 && exit 64; }

# Options of OpenSSH's kind: -a flags, -b words with a value. Leaves `rest`, and each value in `given`.
declare -A given
rest=()
options() {
    local flags="$1" valued="$2" option
    shift 2
    while [ $# -gt 0 ]; do
        option="$1"
        shift
        case "$option" in
            -?)
                if [[ "$flags" == *"${option#-}"* ]]; then
                    given[${option#-}]=yes
                elif [[ "$valued" == *"${option#-}"* ]]; then
                    [ $# -gt 0 ] || fail "$option needs a value"
                    given[${option#-}]="$1" && shift
                else
                    fail "no option $option"
                fi
                ;;
            -*) fail "no option $option" ;;
            *) rest+=("$option") ;;
        esac
    done
    [ ${#rest[@]} -ge 2 ] || fail "a source and a target are wanted"
}
number() { [[ "${given[$1]:-1}" =~ ^[0-9]+$ ]] || fail "-$1 ${given[$1]}: a number is wanted"; }

case "$name" in
    mscp) # mscp(1): [-46vqDpHdNh] [-n connections] [-P port] [-F config] [-c cipher] ... source ... target
        options 46vqDpHdNh nmuIWRsSabLlPFoiJcMCg "$@"
        number n && number P
        [ ${#rest[@]} = 2 ] || fail "one source, one target: ${rest[*]}"
        scp -q -r -F "${given[F]}" -P "${given[P]}" -c "${given[c]}" "${rest[@]}"
        ;;
    escp) # escp --help: it only pushes; "Expected ':' in argument; local copy not implemented"
        options vqprA64sOTR3BL PlCoSDtciFJ "$@"
        number P && number t
        [[ "${rest[-1]}" == *:* ]] || fail "expected ':' in ${rest[-1]}"
        for source in "${rest[@]::${#rest[@]}-1}"; do
            [[ "$source" == *:* ]] && fail "$source: it only pushes"
        done
        [ -x "${given[D]}" ] || fail "-D ${given[D]}: no program"
        scp -q ${given[r]:+-r} -F "${given[F]}" -P "${given[P]}" "${rest[@]}"
        ;;
    bbcp) # bbcp 17.12: -S starts it at a remote source, -T at a remote target; %4 %I %U %H are filled in
        if [ "${1:-}" = SRC ]; then
            exec cat "$2"
        fi
        options 4afDefghkKnNoOprvVyz bBcCdEFHiIlLmPqRsStTuUwWxXZ "$@"
        number s
        [ ${#rest[@]} = 2 ] || fail "one source, one target: ${rest[*]}"
        host="${rest[0]%%:*}" path="${rest[0]#*:}" target="${rest[1]}"
        [ "$host" != "${rest[0]}" ] || fail "a remote source is wanted"
        [ -n "${given[S]:-}" ] || fail "the source is remote: without -S the default ssh of port 22 starts bbcp"
        start="${given[S]}"
        start="${start//%4/${given[4]:+-4}}" && start="${start//%I/}" && start="${start//%U/$(id -un)}"
        start="${start//%H/$host}"
        if [ -d "$target" ]; then
            target="$target/$(basename "$path")"
        fi
        # shellcheck disable=SC2086
        $start SRC "$path" >"$target"
        ;;
    wdt) # gflags: -name value, -flag
        declare -A flag
        while [ $# -gt 0 ]; do
            case "$1" in
                -ipv4 | -enable_checksum | -overwrite) flag[${1#-}]=yes && shift ;;
                -num_ports | -encryption_type | -start_port | -directory | -connection_url | -manifest)
                    [ $# -gt 1 ] || fail "$1 needs a value"
                    flag[${1#-}]="$2" && shift 2
                    ;;
                *) fail "no flag $1" ;;
            esac
        done
        if [ -z "${flag[connection_url]:-}" ]; then
            # The receiver: its URL is the first line, then it waits for the sender.
            mkdir -p "${flag[directory]}"
            done="$(mktemp -u)" && mkfifo "$done"
            echo "wdt://127.0.0.1:0?directory=${flag[directory]}&done=$done"
            cat "$done" >/dev/null && rm "$done"
        else
            url="${flag[connection_url]}"
            target="${url#*directory=}" && target="${target%%&*}"
            if [ -n "${flag[manifest]:-}" ]; then
                while read -r file; do
                    cp "${flag[directory]}/$file" "$target/$file"
                done <"${flag[manifest]}"
            else
                cp -r "${flag[directory]}/." "$target"
            fi
            : >"${url#*done=}"
        fi
        ;;
    *) fail "call it as wdt, escp, bbcp or mscp" ;;
esac
