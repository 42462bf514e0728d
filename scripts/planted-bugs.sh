#!/usr/bin/env bash
# Plants known bugs, one after the other, and requires that a named test goes red each time: proof that the tests bite.
#
#   scripts/planted-bugs.sh               all of them
#   scripts/planted-bugs.sh --pick 4      four, rotating with the number of commits (CI)
#   scripts/planted-bugs.sh --only 03,51  those numbers
#   scripts/planted-bugs.sh --list        what there is
#
# A patch in scripts/planted-bugs/NN-name.patch begins with lines `Bug: ...` and `Red: ...`; the second is the command
# (`cargo test ... [-- ...]`) that passes without the patch and must fail with it. Works on a copy of the tree
# below target/planted, which it removes; shares the build directory. Exit code 0: every bug was caught.
set -euo pipefail
cd "$(dirname "$0")/.."

repo=$PWD
patches=(scripts/planted-bugs/*.patch)
mode=all wanted=
case "${1:-}" in
--list) mode=list ;;
--pick) mode=pick wanted=${2:?how many} ;;
--only) mode=only wanted=${2:?which numbers} ;;
"") ;;
*) echo "unknown: $1 (see the head of this script)" >&2 && exit 2 ;;
esac

field() { sed -n "/^diff \|^--- /q; s/^$1: *//p" "$2"; }

chosen=()
case $mode in
all | list) chosen=("${patches[@]}") ;;
pick)
    first=$(($(git rev-list --count HEAD 2>/dev/null || echo 0) * wanted))
    for ((i = 0; i < wanted; i++)); do chosen+=("${patches[(first + i) % ${#patches[@]}]}"); done
    ;;
only) for number in ${wanted//,/ }; do chosen+=(scripts/planted-bugs/"$number"-*.patch); done ;;
esac

if [ $mode = list ]; then
    for patch in "${chosen[@]}"; do printf '%-40s %s\n' "$(basename "$patch" .patch)" "$(field Bug "$patch")"; done
    exit 0
fi

tree=$repo/target/planted
trap 'rm -rf "$tree"' EXIT
rm -rf "$tree"
mkdir -p "$tree"
tar --exclude=./.git --exclude=target -cf - . | tar -xf - -C "$tree"
export CARGO_TARGET_DIR=$repo/target CARGO_INCREMENTAL=1 LONGHAUL_PLANTED=1
# The crate alone is built with less effort, once for tests and program (hence no abort), and only where it has changed:
# each bug is minutes otherwise. What it stands on is the build that the other lanes have made.
cargo() {
    command cargo --config 'profile.release.package.longhaul.opt-level=0' --config 'profile.release.panic="unwind"' "$@"
}
export -f cargo
log=$repo/target/planted.log
: >"$log"

caught=0 simulated=0
for patch in "${chosen[@]}"; do
    name=$(basename "$patch" .patch)
    test=$(field Red "$patch")
    [ -n "$test" ] || { echo "$name: names no test" >&2 && exit 2; }
    # Outside a repository, so that paths are taken from the copy.
    apply() { (cd "$tree" && GIT_CEILING_DIRECTORIES="$repo/target" git apply --whitespace=nowarn "$@" "$repo/$patch"); }
    apply || { echo "$name: does not apply any more" >&2 && exit 2; }
    # A patch that does not compile would be red for the wrong reason.
    build="${test%% -- *} --no-run"
    began=$SECONDS
    if ! (cd "$tree" && bash -c "$build") >>"$log" 2>&1; then
        echo "$name: does not build; see $log" >&2
        exit 2
    fi
    if (cd "$tree" && timeout 900 bash -c "$test") >>"$log" 2>&1; then
        echo "$name: NOT CAUGHT by: $test"
    else
        caught=$((caught + 1))
        case $test in *"--test sim"*) simulated=$((simulated + 1)) ;; esac
        echo "$name: caught in $((SECONDS - began)) s ($(field Bug "$patch"))"
    fi
    apply -R
done
echo "COUNT planted_bugs=${#chosen[@]} caught=$caught by_simulator_alone=$simulated"
echo "$caught of ${#chosen[@]} caught, $simulated of them by the simulator alone"
[ $caught -eq ${#chosen[@]} ]
