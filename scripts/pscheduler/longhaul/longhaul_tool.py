"""What the programs of this pScheduler tool share. Python 3, standard library only: pScheduler's own module is not needed."""
import datetime, json, os, re, subprocess, sys, time

CONFIG = os.environ.get("LONGHAUL_PSCHEDULER_CONFIG", "/etc/longhaul/pscheduler.json")
DEFAULTS = {"longhaul": "longhaul", "port": 8470, "token-file": None, "peer-fingerprint": None, "known-peers": None, "tls-ca": None}
# `longhaul bench` holds a path for so long with one ticket, s.
BENCH_MIN, BENCH_MAX = 0.2, 15.0
DEFAULT_DURATION = 10.0
DEFAULT_TIMEOUT = 60.0
# Program start, tickets, handshakes and the last bytes, s, before round trips.
AROUND = 5.0
# Others may be late by so much, s: a start that is further away is a mistake.
WAIT_MAX = 120.0
STREAMS_MAX = 64
BLOCKS = [1 << shift for shift in range(16, 21)]

THROUGHPUT = {"schema", "source", "source-node", "dest", "dest-node", "duration", "interval", "link-rtt", "parallel",
              "buffer-length", "congestion", "reverse", "single-ended", "single-ended-port", "udp"}
DISK_TO_DISK = {"schema", "host", "host-node", "source", "dest", "duration", "timeout", "parallel", "cleanup"}
SCHEMAS = {"throughput": range(1, 8), "disk-to-disk": range(1, 2)}


class BadInput(Exception):
    """The input is not what the contract says."""


def main(program):
    """Runs `program` over the JSON of stdin; its answer goes to stdout. 1: the input was bad, said on stderr."""
    try:
        given = json.load(sys.stdin)
        if not isinstance(given, dict):
            raise BadInput("the input is no JSON object")
        answer = program(given)
    except (ValueError, KeyError, TypeError, BadInput) as error:
        what = f"the input has no {error}" if isinstance(error, KeyError) else str(error)
        print(f"longhaul: {what}", file=sys.stderr)
        sys.exit(1)
    json.dump(answer, sys.stdout)
    print()


def config():
    """The operator's settings over the defaults; without a file the defaults."""
    try:
        with open(CONFIG, encoding="utf-8") as file:
            own = json.load(file)
    except FileNotFoundError:
        own = {}
    except ValueError as error:
        raise BadInput(f"{CONFIG}: {error}") from error
    unknown = sorted(set(own) - set(DEFAULTS))
    if unknown:
        raise BadInput(f"{CONFIG}: unknown: {', '.join(unknown)}")
    return {**DEFAULTS, **own}


def seconds(text):
    """An ISO 8601 duration as seconds. Years and months have no fixed length and are refused."""
    pattern = r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?"
    found = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if not found or not any(found.groups()):
        raise BadInput(f"`{text}` is no ISO 8601 duration of weeks to seconds")
    return sum(float(number or 0) * unit for number, unit in zip(found.groups(), (604800, 86400, 3600, 60, 1)))


def iso(number):
    """Seconds as an ISO 8601 duration."""
    return f"PT{number:.6f}".rstrip("0").rstrip(".") + "S"


def spec_of(given):
    """Type and specification of a test; some versions of pScheduler give the specification alone, which says no type."""
    spec = given.get("spec", given)
    kind = given.get("type") if "spec" in given else None
    if not isinstance(spec, dict):
        raise BadInput("the specification is no JSON object")
    if kind is None:
        kind = "disk-to-disk" if "timeout" in spec or "/" in str(spec.get("dest", "")) else "throughput"
    return kind, spec


def local_path(url):
    """The path of a file of this host, or None: `/a/b`, `file:///a/b`."""
    if url.startswith("file:///"):
        return url[len("file://"):]
    return url if url.startswith("/") else None


def reasons(kind, spec):
    """Why this test cannot be run; an empty list: it can."""
    if kind not in SCHEMAS:
        return [f"longhaul runs {' and '.join(SCHEMAS)}, not {kind}"]
    found = []
    schema = spec.get("schema", 1)
    if schema not in SCHEMAS[kind]:
        found.append(f"schema {schema} of {kind} is not known")
    known = THROUGHPUT if kind == "throughput" else DISK_TO_DISK
    found += [f"longhaul does not support {name}" for name in sorted(set(spec) - known)]
    streams = spec.get("parallel", 1)
    if not isinstance(streams, int) or not 1 <= streams <= STREAMS_MAX:
        found.append(f"parallel is 1 to {STREAMS_MAX}")
    if kind == "throughput":
        found += throughput_reasons(spec)
    else:
        ends = [str(spec.get(name, "")) for name in ("source", "dest")]
        if not all(end.startswith("lh://") or local_path(end) for end in ends):
            found.append("source and dest are lh://HOST/PATH, or absolute paths of the host that runs the test")
        elif all(local_path(end) for end in ends):
            found.append("one of source and dest is at an agent, lh://HOST/PATH")
    return found


def throughput_reasons(spec):
    found = []
    if not spec.get("dest"):
        found.append("no dest")
    if spec.get("udp"):
        found.append("longhaul is TCP only")
    length = spec.get("buffer-length")
    if length is not None and length not in BLOCKS:
        found.append(f"buffer-length is one of {', '.join(map(str, BLOCKS))}")
    try:
        if not BENCH_MIN <= seconds(spec.get("duration", iso(DEFAULT_DURATION))) <= BENCH_MAX:
            found.append(f"duration is {BENCH_MIN} to {BENCH_MAX} s")
    except BadInput as error:
        found.append(str(error))
    return found


def around(spec):
    """Time beside the bytes themselves, s."""
    return AROUND + 30 * seconds(spec.get("link-rtt", "PT0S"))


def duration(kind, spec):
    """Whole seconds that a run takes at the most."""
    if kind == "disk-to-disk":
        return int(seconds(spec.get("timeout", iso(DEFAULT_TIMEOUT))) + AROUND + 0.999)
    return int(seconds(spec.get("duration", iso(DEFAULT_DURATION))) + around(spec) + 0.999)


def wait_for(start):
    """Sleeps until an ISO 8601 moment, if it is to come."""
    if not start:
        return
    moment = datetime.datetime.fromisoformat(start.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.astimezone()
    rest = (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    if rest > WAIT_MAX:
        raise BadInput(f"the start, {start}, is {rest:.0f} s away")
    time.sleep(max(rest, 0))


def peer_words(settings):
    words = []
    for key in ("token-file", "peer-fingerprint", "known-peers", "tls-ca"):
        if settings[key]:
            words += [f"--{key}", str(settings[key])]
    return words


def longhaul(words, limit):
    """Runs the program. Its JSON document, the command in words, and what went wrong or None."""
    shown = " ".join(words)
    try:
        done = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        return None, shown, f"{words[0]} cannot be started: {error.strerror}"
    try:
        out, err = done.communicate(timeout=limit)
        late = None
    except subprocess.TimeoutExpired:
        # It writes its checkpoint and ends.
        done.terminate()
        try:
            out, err = done.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            done.kill()
            out, err = done.communicate()
        late = f"not through within {limit:.0f} s"
    try:
        document = json.loads(out)
    except ValueError:
        document = None
    if late or done.returncode != 0 or document is None:
        said = (document or {}).get("error") or err.strip()[-1000:] or f"exit code {done.returncode}"
        return document, shown, late or str(said)
    return document, shown, None
