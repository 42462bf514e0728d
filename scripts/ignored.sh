#!/usr/bin/env bash
# Runs every test that is marked #[ignore], each the way that its reason tells: a child of another test, which makes what it
# needs (a filter of system calls, a process to kill). Fails when one of them did not run, or is not known here.
#
#   scripts/ignored.sh          runs them
#   scripts/ignored.sh --list   CHILD PARENT, a line each
set -euo pipefail
cd "$(dirname "$0")/.."

children="
sys::seccomp::tests::without_io_uring       sys::seccomp::tests::refusals_choose_the_fallback_and_are_told
sys::seccomp::tests::with_an_old_ring       sys::seccomp::tests::refusals_choose_the_fallback_and_are_told
sys::seccomp::tests::without_one_flag       sys::seccomp::tests::refusals_choose_the_fallback_and_are_told
sys::seccomp::tests::without_the_rest       sys::seccomp::tests::refusals_choose_the_fallback_and_are_told
control::store::sqlite::tests::kill::child  control::store::sqlite::tests::kill::a_killed_process_loses_nothing
"
children=$(sed '/^$/d' <<<"$children")
if [ "${1:-}" = --list ]; then
    echo "$children"
    exit 0
fi

cargo=(cargo test --release --features testing --lib --)
known=$(awk '{print $1}' <<<"$children" | sort)
marked=$("${cargo[@]}" --ignored --list 2>/dev/null | sed -n 's/: test$//p' | sort)
if [ "$known" != "$marked" ]; then
    echo "what is marked #[ignore] and what this script knows differ:" >&2
    diff <(echo "$known") <(echo "$marked") >&2 || true
    exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
mapfile -t parents < <(awk '{print $2}' <<<"$children" | sort -u)
# What the children print is passed on by their parents.
"${cargo[@]}" --exact --nocapture "${parents[@]}" | tee "$log"
while read -r child _; do
    # The kill test's child is killed, so it never comes to its end; its parent fails when it has not worked.
    case $child in *kill::child) continue ;; esac
    grep -q "^test $child \.\.\. ok" "$log" || { echo "$child did not run" >&2 && exit 1; }
done <<<"$children"
echo "$(wc -l <<<"$children") ignored tests, each run by its parent"
