#!/usr/bin/env python3
"""Longhaul without any tuning option against the best hand-tuned iperf3, cell by cell of a grid of long links (scripts/lab.sh).

  scripts/grid.py                      16 cells, 40 s a run, 5 rounds: most of a day
  scripts/grid.py --short              four corner cells, 10 s a run, 3 rounds
  scripts/grid.py --rtt 100ms --loss 0.01% [--rate 1gbit] [--cc cubic] [--seconds 40] [--screen 40] [--rounds 5] [--size 4GiB] [--out DIR]

In each cell iperf3 is tried once in 16 settings (cubic, bbr x 1, 4, 8, 16 streams x the kernel's default limits of
buffers, 256 MiB); its best two then
take turns with `longhaul cp`, which fetches a file of SIZE, verified and encrypted. Goodput is the receiver's, start-up included.
Writes OUT/grid.jsonl, a line a run, and OUT/README.md, the table. Needs root, iperf3 and a release build.
"""
import argparse, datetime, json, os, platform, re, shutil, signal, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAB = os.path.join(ROOT, "scripts", "lab.sh")
ALLOWED = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
NAME = "grid"
FAR = "10.77.0.2"
SETTINGS = [(cc, streams, window) for cc in ("cubic", "bbr") for streams in (1, 4, 8, 16) for window in ("default", "256m")]


def inside(side, *words):
    return ["ip", "netns", "exec", f"{NAME}-{side}", *words]


def size_of(text):
    number, unit = re.fullmatch(r"(\d+)([KMG]i?B)?", text).groups()
    return int(number) * {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]


LIMITS = {"default": ("4096 131072 33554432", "4096 16384 4194304"), "256m": ("4096 131072 268435456", "4096 16384 268435456")}


def buffers(window):
    """What the namespaces' autotuning may reach: the kernel's defaults, or what a tuned host has."""
    for side in "ab":
        for key, value in zip(("rmem", "wmem"), LIMITS[window]):
            subprocess.run(inside(side, "sysctl", "-q", "-w", f"net.ipv4.tcp_{key}={value}"), check=True)


def iperf(setting, seconds):
    """One run, side b sending to side a, as `longhaul cp` pulls. Bits per second at the receiver, share sent again."""
    cc, streams, window = setting
    buffers(window)
    server = subprocess.Popen(inside("b", "iperf3", "-s", "-1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    words = ["iperf3", "-c", FAR, "-R", "-J", "-t", str(seconds), "-P", str(streams), "-C", cc]
    try:
        done = subprocess.run(inside("a", *words), capture_output=True, text=True, timeout=seconds + 60)
        end = json.loads(done.stdout)["end"]
        sent = end["sum_sent"]
        again = sent.get("retransmits", 0) * 1448 / max(sent["bytes"], 1)
        return {"bits_per_second": int(end["sum_received"]["bits_per_second"]), "resent": again}
    except (subprocess.TimeoutExpired, KeyError, ValueError) as error:
        return {"bits_per_second": 0, "resent": 0, "error": repr(error)}
    finally:
        server.terminate()
        server.wait()


class Agent:
    def __init__(self, binary, dir, size):
        os.makedirs(f"{dir}/root")
        with open(f"{dir}/root/file", "wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        words = [binary, "agent", "--root", f"{dir}/root", "--state", f"{dir}/state", "--roles", "source"]
        words += ["--http", f"{FAR}:8470", "--data", f"{FAR}:8471"]
        self.process = subprocess.Popen(inside("b", *words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.ready = json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def longhaul(binary, agent, dir, window):
    buffers(window)
    words = [binary, "cp", "--json", f"lh://{agent.ready['http']}/file", f"{dir}/copy"]
    words += ["--peer-fingerprint", agent.ready["fingerprint"], "--token-file", agent.ready["token_file"]]
    done = subprocess.run(inside("a", *words), capture_output=True, text=True, env={**os.environ, "HOME": dir, "XDG_STATE_HOME": f"{dir}/s"})
    if os.path.exists(f"{dir}/copy"):
        os.remove(f"{dir}/copy")
    if done.returncode != 0:
        return {"bits_per_second": 0, "resent": 0, "error": done.stderr[-300:]}
    report = json.loads(done.stdout)
    sender = (report.get("evidence") or {}).get("sender") or {}
    again = sender.get("bytes_retransmitted", 0) / max(sender.get("bytes_sent", 0), 1)
    notes = [note for note in report["notes"] if note.startswith("tuned: ")]
    keep = {key: report[key] for key in ("bits_per_second", "verdict", "limiter", "streams", "duration_ns")}
    return {**keep, "resent": again, "tuned": notes}


def cell(args, rtt, loss, out):
    subprocess.run([LAB, "down", "--name", NAME], capture_output=True)
    subprocess.run([LAB, "up", "--name", NAME, "--rtt", rtt, "--rate", args.rate, "--loss", loss, "--tcp-buf", "256m", "--cc", args.cc], check=True)
    def note(who, run):
        line = {"rtt": rtt, "loss": loss, "rate": args.rate, "cc": args.cc, "who": who, **run}
        out.write(json.dumps(line) + "\n")
        out.flush()
        print(f"  {who}: {run['bits_per_second'] / 1e6:.0f} Mbit/s, {run['resent'] * 100:.2f} % again", file=sys.stderr)
        return run
    try:
        print(f"{args.rate} {rtt} {loss}", file=sys.stderr)
        tried = [(note(f"screen {s}", iperf(s, args.screen or args.seconds))["bits_per_second"], s) for s in SETTINGS]
        best = [s for _, s in sorted(tried, key=lambda t: -t[0])[:2]]
        with tempfile.TemporaryDirectory(dir="/dev/shm") as dir:
            agent = Agent(args.binary, dir, size_of(args.size))
            ours, theirs = [], {s: [] for s in best}
            try:
                for _ in range(args.rounds):
                    ours.append(note("longhaul", longhaul(args.binary, agent, dir, args.buffers)))
                    for s in best:
                        theirs[s].append(note(f"iperf3 {s}", iperf(s, args.seconds)))
            finally:
                agent.stop()
    finally:
        subprocess.run([LAB, "down", "--name", NAME], capture_output=True)
    rates = lambda runs: [run["bits_per_second"] / 1e6 for run in runs]
    setting, runs = max(theirs.items(), key=lambda t: statistics.median(rates(t[1])))
    mine, other = rates(ours), rates(runs)
    ratio = statistics.median(mine) / max(statistics.median(other), 0.001)
    again = statistics.median([run["resent"] for run in ours]) * 100
    spread = lambda all: f"{statistics.median(all):.0f} ({min(all):.0f} to {max(all):.0f})"
    name = f"{setting[0]} x {setting[1]}, {setting[2]}"
    return f"| {rtt} | {loss} | {spread(mine)} | {spread(other)} | {name} | {ratio:.2f} | {again:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rtt", default="10ms,50ms,100ms,200ms")
    parser.add_argument("--loss", default="0%,0.001%,0.01%,0.1%")
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--cc", default="cubic")
    parser.add_argument("--buffers", choices=list(LIMITS), default="256m", help="Longhaul's limits")
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--screen", type=int, help="seconds of a screening run [default: --seconds]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="4GiB")
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "release", "longhaul"))
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.short:
        args.rtt, args.loss, args.seconds, args.rounds, args.size = "10ms,200ms", "0%,0.1%", 10, 3, "1GiB"
    if os.geteuid() != 0 or not shutil.which("iperf3") or not os.path.exists(args.binary):
        sys.exit("grid: needs root, iperf3 and a release build (cargo build --release)")
    day = datetime.date.today().isoformat()
    args.out = args.out or os.path.join(ROOT, "tuning", "runs", f"{day}-{platform.node()}-grid")
    os.makedirs(args.out, exist_ok=True)
    allowed = open(ALLOWED).read().strip()
    if "cubic" not in allowed.split():
        open(ALLOWED, "w").write(f"{allowed} cubic")
    rows = []
    try:
        with open(os.path.join(args.out, "grid.jsonl"), "a") as out:
            for rtt in args.rtt.split(","):
                for loss in args.loss.split(","):
                    rows.append(cell(args, rtt, loss, out))
                    print(rows[-1], file=sys.stderr)
    finally:
        open(ALLOWED, "w").write(allowed)
    command = " ".join(["scripts/grid.py", *sys.argv[1:]])
    with open(os.path.join(args.out, "README.md"), "w") as table:
        table.write(f"`{command}`, {day}, {os.cpu_count()} CPUs, kernel {platform.release()}, {args.rate}, default {args.cc}, buffers {args.buffers}. Medians of "
                    f"{args.rounds} (least to most), Mbit/s at the receiver, start-up included; ratio of Longhaul (a {args.size} file, "
                    f"encrypted, verified, no option) to the best iperf3 setting ({args.seconds} s), taking turns.\n\n"
                    "| round trip | loss | longhaul | best iperf3 | its setting | ratio | longhaul sent again, % |\n"
                    "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
