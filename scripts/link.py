#!/usr/bin/env python3
"""One long link of the lab (scripts/lab.sh): Longhaul beside other tools, beside itself, and while the link changes.

  scripts/link.py peers [--rtt 100ms] [--loss 0%] [--seconds 40] [--rounds 5]   against rsync, rclone, aria2, xrdcp, globus-url-copy
  scripts/link.py share [--rtt 50ms] [--rounds 1]    two transfers 5 s apart; one cubic flow beside a transfer and beside cubic flows
  scripts/link.py rate  [--rtt 50ms]                 --rate 300Mbit, 30 s after the first 5
  scripts/link.py steps [--rtt 50ms]                 the rate halves; it doubles and 0.1 % is lost; the round trip doubles

Longhaul has no tuning option, is encrypted and verified. Other tools have the best of their settings under cubic and under bbr (as
the namespaces' default), and their own defaults under cubic. A run is ended after --seconds: then what came over the link counts,
headers and repeats left off by the share of payload in a full segment. Lines go to OUT/link.jsonl, tables to the terminal.
Needs root, a release build, and for `peers` and `share` the tools. While it runs: the lab `link`, `cubic` in
net.ipv4.tcp_allowed_congestion_control and, for `peers`, /etc/netns/link-a and -b.
"""
import argparse, json, os, shutil, signal, statistics, subprocess, sys, tempfile, time
import grid

NAME = "link"
grid.NAME = NAME
PAYLOAD = 1448 / 1500  # of a full segment with timestamps, headers of IPv4 and TCP left off


def lab(verb, *words):
    subprocess.run([grid.LAB, verb, "--name", NAME, *words], check=verb != "down", capture_output=True)


def default_control(name):
    for side in "ab":
        subprocess.run(grid.inside(side, "sysctl", "-q", "-w", f"net.ipv4.tcp_congestion_control={name}"), check=True)


def arrived():
    """Bytes that have come over the link to side a."""
    text = subprocess.run(grid.inside("a", "cat", "/proc/net/dev"), capture_output=True, text=True, check=True).stdout
    rows = [line.split(":") for line in text.splitlines() if ":" in line]
    return sum(int(rest.split()[0]) for name, rest in rows if name.strip() != "lo")


def timed(words, seconds, size, env=None):
    """Bits per second of a client on side a that fetches SIZE bytes, or of its first SECONDS."""
    before, began = arrived(), time.time()
    client = subprocess.Popen(grid.inside("a", *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env, start_new_session=True)
    try:
        _, said = client.communicate(timeout=seconds)
        took = time.time() - began
        if client.returncode != 0:
            return {"bits_per_second": 0, "error": said.decode()[-300:]}
        return {"bits_per_second": size * 8 / took, "seconds": took}
    except subprocess.TimeoutExpired:
        bits = (arrived() - before) * 8 * PAYLOAD / (time.time() - began)
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        return {"bits_per_second": bits, "seconds": seconds, "ended": True}


class Servers:
    """Servers of the other tools on side b, serving DIR."""

    def __init__(self, dir):
        self.dir, self.all = dir, []
        os.makedirs(f"{dir}/servers")
        # GridFTP wants a name for each address; `ip netns exec` shows these files as /etc/hosts.
        for side, own in (("a", "10.77.0.1"), ("b", grid.FAR)):
            os.makedirs(f"/etc/netns/{NAME}-{side}", exist_ok=True)
            with open(f"/etc/netns/{NAME}-{side}/hosts", "w") as hosts:
                hosts.write(f"127.0.0.1 localhost\n10.77.0.1 near\n{grid.FAR} far\n{own} {os.uname().nodename}\n")

    def start(self, *words):
        out = open(f"{self.dir}/servers/{os.path.basename(words[0])}.log", "w")
        self.all.append(subprocess.Popen(grid.inside("b", *words), stdout=out, stderr=out, start_new_session=True))

    def stop(self):
        for server in self.all:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        for side in "ab":
            shutil.rmtree(f"/etc/netns/{NAME}-{side}", ignore_errors=True)


def tools(dir, servers):
    """Name: (clients' words for a copy to OUT at the best settings and at the defaults). What is not installed is left out."""
    far, made = grid.FAR, {}
    has = lambda *names: all(shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") or print(f"{name} is not installed: left out", file=sys.stderr) for name in names)
    if has("rsync"):
        open(f"{dir}/servers/rsyncd.conf", "w").write(f"use chroot = no\nuid = 0\ngid = 0\n[src]\npath = {dir}/root\nread only = yes\n")
        servers.start("rsync", "--daemon", "--no-detach", "--port=873", f"--config={dir}/servers/rsyncd.conf")
        line = lambda out: ["rsync", "-a", "--whole-file", "--inplace", f"rsync://{far}/src/file", out]
        made["rsync"] = (line, line)
    if has("rclone"):
        servers.start("rclone", "serve", "webdav", "--read-only", "--addr", f"{far}:8480", "--config", "/dev/null", f"{dir}/root")
        open(f"{dir}/servers/rclone.conf", "w").write(f"[far]\ntype = webdav\nurl = http://{far}:8480\nvendor = other\n")
        line = lambda more: lambda out: ["rclone", "copyto", "--config", f"{dir}/servers/rclone.conf", "--no-check-dest", *more, "far:file", out]
        made["rclone"] = (line(["--multi-thread-streams", "16", "--multi-thread-cutoff", "1M"]), line([]))
    if has("aria2c", "nginx"):
        temp = "".join(f"{kind}_temp_path {dir}/servers/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        open(f"{dir}/servers/nginx.conf", "w").write(
            f"daemon off;\nuser root;\nworker_processes 2;\npid {dir}/servers/nginx.pid;\nevents {{ worker_connections 512; }}\n"
            f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n{temp}server {{ listen {far}:8481; root {dir}/root; }} }}\n")
        servers.start(shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"), "-c", f"{dir}/servers/nginx.conf", "-e", f"{dir}/servers/nginx.err")
        line = lambda more: lambda out: ["aria2c", "-q", "--no-conf", "-d", os.path.dirname(out), "-o", os.path.basename(out), *more, f"http://{far}:8481/file"]
        made["aria2"] = (line(["-x16", "-s16", "-k1M", "--file-allocation=none", "--disk-cache=64M"]), line([]))
    if has("xrootd", "xrdcp"):
        os.makedirs(f"{dir}/servers/xrootd")
        shutil.chown(f"{dir}/servers/xrootd", "nobody")
        open(f"{dir}/servers/xrootd/conf", "w").write(f"xrd.port 1094\nall.export /\nall.adminpath {dir}/servers/xrootd\nall.pidpath {dir}/servers/xrootd\nxrootd.async off\n")
        servers.start("xrootd", "-R", "nobody", "-c", f"{dir}/servers/xrootd/conf", "-l", f"{dir}/servers/xrootd/log")
        line = lambda more: lambda out: ["env", "XRD_CPUSEPGWRTRD=0", "xrdcp", "-s", "-f", *more, f"root://{far}:1094/{dir}/root/file", out]
        made["xrdcp"] = (line(["-S", "15"]), line([]))
    if has("globus-gridftp-server", "globus-url-copy"):
        servers.start("globus-gridftp-server", "-s", "-p", "2811", "-aa", "-anonymous-user", "root", "-allow-root", "-home-dir", "/", "-control-interface", far, "-data-interface", far)
        line = lambda more: lambda out: ["globus-url-copy", "-binary", *more, f"ftp://{far}:2811{dir}/root/file", f"file://{out}"]
        made["globus"] = (line(["-fast", "-p", "16"]), line([]))
    return made


class Bench:
    def __init__(self, args):
        self.args = args
        self.out = open(os.path.join(args.out, "link.jsonl"), "a") if args.out else None
        lab("down")
        lab("up", "--rtt", args.rtt, "--rate", args.rate, "--loss", args.loss, "--tcp-buf", "256m", "--cc", "cubic")
        grid.buffers("256m")
        base = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lh-link-")
        self.base, self.dir = base, base.name
        os.chmod(self.dir, 0o755)  # servers that give up root have to get in
        self.agent = grid.Agent(args.binary, self.dir, grid.size_of(args.size))

    def close(self):
        self.agent.stop()
        lab("down")
        self.base.cleanup()

    def note(self, **line):
        line = {"rtt": self.args.rtt, "loss": self.args.loss, "rate": self.args.rate, **line}
        print(json.dumps(line), file=sys.stderr)
        if self.out:
            self.out.write(json.dumps(line) + "\n")
            self.out.flush()

    def words(self, out, *more):
        words = [self.args.binary, "cp", "--json", f"lh://{self.agent.ready['http']}/file", out]
        return [*words, "--peer-fingerprint", self.agent.ready["fingerprint"], "--token-file", self.agent.ready["token_file"], *more]

    def env(self, number=0):
        return {**os.environ, "HOME": self.dir, "XDG_STATE_HOME": f"{self.dir}/s{number}"}

    def start(self, number, *more):
        return subprocess.Popen(grid.inside("a", *self.words(f"{self.dir}/copy{number}", *more)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.env(number))

    def placed(self, number):
        """Bytes of a copy that are there: memory that its part file has."""
        for name in os.listdir(self.dir):
            if name.startswith(f".copy{number}.lh-") or name == f"copy{number}":
                return os.stat(f"{self.dir}/{name}").st_blocks * 512
        return 0

    def end(self, process, number):
        process.terminate()
        process.wait()
        for name in os.listdir(self.dir):
            if f"copy{number}" in name and os.path.isfile(f"{self.dir}/{name}"):
                os.remove(f"{self.dir}/{name}")

    def follow(self, seconds, numbers, doing=lambda now: None):
        """(time, bytes of each copy) twice a second."""
        began, marks = time.time(), []
        while time.time() - began < seconds:
            doing(time.time() - began)
            marks.append((time.time() - began, [self.placed(n) for n in numbers]))
            time.sleep(0.5)
        return marks


def between(marks, since, until):
    """Mbit/s of each copy between two times."""
    at = lambda t: min(marks, key=lambda mark: abs(mark[0] - t))
    (t, a), (u, b) = at(since), at(until)
    return [(y - x) * 8e-6 / (u - t) for x, y in zip(a, b)]


def peers(bench, args):
    size = grid.size_of(args.size)
    servers, runs = Servers(bench.dir), {}
    try:
        made = tools(bench.dir, servers)
        time.sleep(2)
        for round in range(args.rounds):
            default_control("cubic")
            run = timed(bench.words(f"{bench.dir}/copy0"), args.seconds, size, bench.env())
            clean(bench.dir)
            bench.note(who="longhaul", round=round, **run)
            runs.setdefault(("longhaul", "no option", "cubic"), []).append(run["bits_per_second"])
            for name, (best, plain) in made.items():
                for how, line, control in (("best", best, "cubic"), ("best", best, "bbr"), ("defaults", plain, "cubic")):
                    if how == "defaults" and best is plain:
                        continue
                    default_control(control)
                    run = timed(line(f"{bench.dir}/out"), args.seconds, size)
                    clean(bench.dir)
                    bench.note(who=name, settings=how, cc=control, round=round, **run)
                    runs.setdefault((name, how, control), []).append(run["bits_per_second"])
    finally:
        servers.stop()
    mine = runs[("longhaul", "no option", "cubic")]
    print(f"\n{args.rate}, {args.rtt}, loss {args.loss}: medians of {args.rounds} (least to most), Mbit/s, start-up included, {args.size} or {args.seconds} s\n")
    print("| tool | settings | congestion control | Mbit/s | Longhaul by it, median of rounds |\n|---|---|---|---|---|")
    for (name, how, control), rates in sorted(runs.items(), key=lambda item: -statistics.median(item[1])):
        ratio = statistics.median(m / max(r, 1) for m, r in zip(mine, rates))
        print(f"| {name} | {how} | {control} | {statistics.median(rates) / 1e6:.0f} ({min(rates) / 1e6:.0f} to {max(rates) / 1e6:.0f}) | {ratio:.2f} |")


def clean(dir):
    for name in os.listdir(dir):
        if name.startswith(("out", "copy", ".copy", ".out")) and os.path.isfile(f"{dir}/{name}"):
            os.remove(f"{dir}/{name}")


def share(bench, args):
    jains, kept = [], []
    for _ in range(args.rounds):
        running = [bench.start(0)]
        later = lambda now: running.append(bench.start(1)) if now > 5 and len(running) == 1 else None
        marks = bench.follow(61, [0, 1], later)
        for number, process in enumerate(running):
            bench.end(process, number)
        rates = between(marks, 30, 60)
        jains.append(sum(rates) ** 2 / (2 * sum(rate * rate for rate in rates)))
        bench.note(what="two transfers, 30 of 60 s", mbit=rates, jain=jains[-1])
        beside = []
        for with_longhaul in (True, False):
            if with_longhaul:
                process = bench.start(0)
            else:
                server, process = flows(args.streams, "cubic", 45)
            time.sleep(5)
            one = single(30)
            if with_longhaul:
                bench.end(process, 0)
            else:
                process.terminate()
                process.wait()
                server.terminate()
                server.wait()
            bench.note(what="one cubic flow for 30 s", beside="longhaul" if with_longhaul else f"{args.streams} cubic flows", mbit=one)
            beside.append(one)
        kept.append(beside[0] / beside[1])
    print(f"\n{args.rate}, {args.rtt}, loss {args.loss}: two transfers 5 s apart: Jain {statistics.median(jains):.4f}; a cubic flow beside a transfer keeps "
          f"{statistics.median(kept):.2f} of what it has beside {args.streams} cubic flows (medians of {args.rounds})")


def serve(port):
    server = subprocess.Popen(grid.inside("b", "iperf3", "-s", "-p", str(port)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    return server


def flows(count, control, seconds):
    """A server, and the client that has so many flows from it."""
    server = serve(5301)
    words = ["iperf3", "-c", grid.FAR, "-p", "5301", "-R", "-t", str(seconds), "-P", str(count), "-C", control]
    return server, subprocess.Popen(grid.inside("a", *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def single(seconds):
    server = serve(5302)
    words = ["iperf3", "-c", grid.FAR, "-p", "5302", "-R", "-J", "-t", str(seconds), "-P", "1", "-C", "cubic"]
    done = subprocess.run(grid.inside("a", *words), capture_output=True, text=True, timeout=seconds + 60)
    server.terminate()
    server.wait()
    return json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e6


def rate(bench, args):
    asked = 300.0
    process = bench.start(0, "--rate", f"{asked:.0f}Mbit")
    marks = bench.follow(36, [0])
    bench.end(process, 0)
    got = between(marks, 5, 35)[0]
    bench.note(what=f"--rate {asked:.0f}Mbit, 30 s after the first 5", mbit=got)
    print(f"\n--rate {asked:.0f}Mbit: {got:.1f} Mbit/s over 30 s ({(got / asked - 1) * 100:+.1f} %)")


def steps(bench, args):
    full = 1000 * PAYLOAD
    doubled = f"{int(args.rtt.removesuffix('ms')) * 2}ms"
    plan = [(15, ["--rate", "500mbit"], "the rate halves", full / 2), (32, ["--rate", "1gbit", "--loss", "0.1%"], "the rate doubles and 0.1 % is lost", full),
            (55, ["--rtt", doubled], "the round trip doubles", full)]
    left = list(plan)
    def doing(now):
        if left and now > left[0][0]:
            lab("set", *left.pop(0)[1])
    process = bench.start(0)
    marks = bench.follow(75, [0], doing)
    bench.end(process, 0)
    print(f"\n{args.rtt}, 1 Gbit/s. Goodput in pieces of 2 s from each step on, Mbit/s; the aim: 90 % of what is possible from 10 s on\n\n| step | possible | 2 s pieces | back at 90 % after, s |\n|---|---|---|---|")
    for n, (at, _, what, possible) in enumerate(plan):
        until = plan[n + 1][0] if n + 1 < len(plan) else 75
        pieces = [between(marks, t, t + 2)[0] for t in range(at, until - 1, 2)]
        back = next((2 * i for i in range(len(pieces)) if statistics.mean(pieces[i:]) >= 0.9 * possible and pieces[i] >= 0.9 * possible), None)
        bench.note(what=what, possible=possible, pieces=pieces, back=back)
        print(f"| {what} | {possible:.0f} | {' '.join(f'{p:.0f}' for p in pieces)} | {back} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peers", "share", "rate", "steps"])
    parser.add_argument("--rtt")
    parser.add_argument("--loss", default="0%")
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--seconds", type=int, default=40, help="the longest that a run of `peers` takes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--streams", type=int, default=8, help="cubic flows of `share`, as many as a transfer has")
    parser.add_argument("--size")
    parser.add_argument("--binary", default=os.path.join(grid.ROOT, "target", "release", "longhaul"))
    parser.add_argument("--out", help="a directory for link.jsonl")
    args = parser.parse_args()
    args.rtt = args.rtt or ("100ms" if args.what == "peers" else "50ms")
    args.rounds = args.rounds or (5 if args.what == "peers" else 1)
    args.size = args.size or {"peers": "2GiB", "share": "7GiB", "rate": "2GiB", "steps": "7GiB"}[args.what]
    if os.geteuid() != 0 or not os.path.exists(args.binary):
        sys.exit("link: needs root and a release build (cargo build --release)")
    if args.out:
        os.makedirs(args.out, exist_ok=True)
    with open(grid.ALLOWED) as file:
        allowed = file.read().strip()
    if "cubic" not in allowed.split():
        open(grid.ALLOWED, "w").write(f"{allowed} cubic")
    bench = Bench(args)
    try:
        {"peers": peers, "share": share, "rate": rate, "steps": steps}[args.what](bench, args)
    finally:
        bench.close()
        open(grid.ALLOWED, "w").write(allowed)


if __name__ == "__main__":
    main()
