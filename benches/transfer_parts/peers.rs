//! Other tools, as Debian has them, each at the settings that are best for it (`scripts/compare.sh`). What is not installed is
//! left out with a word.

use super::{Candidate, Fallible, Outcome, Server, Timed, Traits, Work, free_port, has, timed, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the client is called: the source's name, where the copy goes, the port.
type Client = Box<dyn Fn(&Ports, &Path) -> Fallible<Command>>;

struct Ports {
    port: u16,
    source: PathBuf,
    base: PathBuf,
}

impl Ports {
    fn name(&self) -> String {
        self.source.file_name().expect("made by us").to_string_lossy().into_owned()
    }

    fn root(&self) -> &Path {
        self.source.parent().expect("made by us")
    }
}

/// A server that stays for all rounds, and a client for each.
pub struct Peer {
    name: String,
    traits: Traits,
    ports: Ports,
    server: Server,
    client: Client,
}

impl Candidate for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn traits(&self) -> Traits {
        self.traits
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let mut command = (self.client)(&self.ports, out)?;
        let before = self.server.cpu();
        let Timed { wall, cpu, rss, .. } = timed(&mut command, &[])?;
        std::thread::sleep(std::time::Duration::from_millis(50)); // servers wait for their children, whose time then counts
        Ok(Outcome {
            wall,
            cpu_source: self.server.cpu() - before,
            cpu_destination: cpu,
            rss_destination: rss,
            ..Outcome::default()
        })
    }
}

const PLAIN: Traits = Traits { verify: "none", durable: "none", encrypted: false };

/// Everything of them that can run here for this work.
pub fn peers(work: Work, base: &Path, source: &Path, named: &[(String, PathBuf)]) -> Fallible<Vec<Box<dyn Candidate>>> {
    let mut all: Vec<Box<dyn Candidate>> = Vec::new();
    let mut begun = |tools: &[&str], make: &dyn Fn() -> Fallible<Vec<Box<dyn Candidate>>>| -> Fallible<()> {
        match tools.iter().find(|tool| !has(tool)) {
            Some(missing) => eprintln!("{missing} is not installed: left out"),
            None => all.extend(make()?),
        }
        Ok(())
    };
    let tree = source.is_dir();
    begun(&["tar", "socat"], &|| Ok(vec![Box::new(TarSocat { source: source.to_owned() })]))?;
    begun(&["nginx", "curl"], &|| Ok(vec![Box::new(curl(base, source, tree)?)]))?;
    begun(&["nginx", "aria2c"], &|| Ok(vec![Box::new(aria2(base, source, tree)?)]))?;
    if work != Work::Small {
        begun(&["rclone"], &|| Ok(vec![Box::new(rclone(base, source)?)]))?;
    }
    begun(&["xrootd", "xrdcp"], &|| Ok(vec![Box::new(xrdcp(base, source, tree)?)]))?;
    begun(&["globus-gridftp-server", "globus-url-copy"], &|| Ok(vec![Box::new(globus(base, source, tree)?)]))?;
    if work != Work::Small {
        begun(&["sshd", "scp"], &|| Ok(vec![Box::new(scp(base, source)?)]))?;
    }
    for (name, path) in named {
        match name.as_str() {
            "wdt" => all.push(Box::new(Wdt { program: path.clone(), source: source.to_owned() })),
            "escp" | "bbcp" | "mscp" if !has("sshd") => {
                eprintln!("{name} needs sshd, which is not installed: left out")
            }
            "escp" | "bbcp" | "mscp" if tree && name == "bbcp" => eprintln!("bbcp takes minutes for trees: left out"),
            "escp" | "bbcp" | "mscp" => all.push(Box::new(over_ssh(name, path, base, source)?)),
            other => return Err(format!("--peer-bin {other}: wdt, escp, bbcp or mscp").into()),
        }
    }
    Ok(all)
}

fn start(
    name: &str,
    traits: Traits,
    base: &Path,
    source: &Path,
    server: Server,
    port: u16,
    client: Client,
) -> Fallible<Peer> {
    wait_for(port)?;
    let ports = Ports { port, source: source.to_owned(), base: base.to_owned() };
    Ok(Peer { name: name.to_owned(), traits, ports, server, client })
}

/// Paths of all files below the source, relative to its parent.
fn names(ports: &Ports) -> Fallible<Vec<PathBuf>> {
    let (mut dirs, mut files) = (vec![PathBuf::from(ports.name())], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(ports.root().join(&dir))? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() { &mut dirs } else { &mut files };
            list.push(dir.join(entry.file_name()));
        }
    }
    Ok(files)
}

fn nginx(base: &Path, source: &Path, port: u16) -> Fallible<Server> {
    let dir = base.join(format!("nginx-{port}"));
    fs::create_dir_all(&dir)?;
    let (at, root) = (dir.display(), source.parent().expect("made by us").display());
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .concat();
    let text = format!(
        "daemon off;\n{user}\nworker_processes 2;\npid {at}/pid;\nerror_log {at}/log;\nevents {{ worker_connections 512; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 4m; keepalive_requests 1000000;\n{temp}\
         server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    );
    fs::write(dir.join("conf"), text)?;
    Server::start(Command::new("nginx").arg("-c").arg(dir.join("conf")).arg("-e").arg(dir.join("log")))
}

fn curl(base: &Path, source: &Path, tree: bool) -> Fallible<Peer> {
    let port = free_port()?;
    let client: Client = Box::new(move |ports, out| {
        let url = |name: &str| format!("http://127.0.0.1:{}/{name}", ports.port);
        let mut command = Command::new("curl");
        if !tree {
            command.args(["-s", "-f", "-o"]).arg(out.join(ports.name())).arg(url(&ports.name()));
            return Ok(command);
        }
        let list = ports.base.join("curl-list");
        let lines: Vec<String> = names(ports)?
            .iter()
            .map(|n| format!("url = \"{}\"\noutput = \"{}\"\n", url(&n.to_string_lossy()), out.join(n).display()))
            .collect();
        fs::write(&list, lines.concat())?;
        command.args(["-s", "-f", "--create-dirs", "--parallel", "--parallel-max", "8", "-K"]).arg(list);
        Ok(command)
    });
    start("curl-nginx", PLAIN, base, source, nginx(base, source, port)?, port, client)
}

fn aria2(base: &Path, source: &Path, tree: bool) -> Fallible<Peer> {
    let port = free_port()?;
    let client: Client = Box::new(move |ports, out| {
        let url = |name: &str| format!("http://127.0.0.1:{}/{name}", ports.port);
        let mut command = Command::new("aria2c");
        command.args(["-q", "--no-conf", "-d"]).arg(out);
        if !tree {
            command.args(["-x16", "-s16", "-k1M", "--file-allocation=falloc", "--disk-cache=64M", "-o"]);
            command.arg(ports.name()).arg(url(&ports.name()));
            return Ok(command);
        }
        let list = ports.base.join("aria2-list");
        let lines: Vec<String> =
            names(ports)?.iter().map(|n| format!("{}\n  out={}\n", url(&n.to_string_lossy()), n.display())).collect();
        fs::write(&list, lines.concat())?;
        command.args(["-j16", "-x1", "--file-allocation=none", "-i"]).arg(list);
        Ok(command)
    });
    start("aria2-nginx", PLAIN, base, source, nginx(base, source, port)?, port, client)
}

fn rclone(base: &Path, source: &Path) -> Fallible<Peer> {
    let port = free_port()?;
    let config = base.join("rclone.conf");
    fs::write(&config, format!("[bench]\ntype = webdav\nurl = http://127.0.0.1:{port}\nvendor = other\n"))?;
    let server = Server::start(
        Command::new("rclone")
            .args(["serve", "webdav", "--read-only", "--addr", &format!("127.0.0.1:{port}"), "--config"])
            .arg(&config)
            .arg(source.parent().expect("made by us")),
    )?;
    let client: Client = Box::new(move |ports, out| {
        let mut command = Command::new("rclone");
        command.arg("copy").arg("--config").arg(&config);
        command.args(["--no-check-dest", "--no-update-modtime", "--transfers", "8", "--checkers", "8"]);
        command.args(["--multi-thread-streams", "4", "--multi-thread-cutoff", "1M"]);
        let to = if ports.source.is_dir() { out.join(ports.name()) } else { out.to_owned() };
        command.arg(format!("bench:{}", ports.name())).arg(to);
        Ok(command)
    });
    start("rclone-webdav", PLAIN, base, source, server, port, client)
}

fn xrdcp(base: &Path, source: &Path, tree: bool) -> Fallible<Peer> {
    let port = free_port()?;
    let dir = base.join("xrootd");
    fs::create_dir_all(&dir)?;
    let at = dir.display();
    fs::write(
        dir.join("conf"),
        format!("xrd.port {port}\nall.export /\nall.adminpath {at}\nall.pidpath {at}\nxrootd.async off\n"),
    )?;
    let mut command = Command::new("xrootd");
    if nix::unistd::geteuid().is_root() {
        // It refuses to be root.
        nix::unistd::chown(&dir, Some(65534.into()), None)?;
        command.args(["-R", "nobody"]);
    }
    let server = Server::start(command.arg("-c").arg(dir.join("conf")).arg("-l").arg(dir.join("log")))?;
    let client: Client = Box::new(move |ports, out| {
        let mut command = Command::new("xrdcp");
        // Without its checksum per page, which costs it more than half of its speed.
        command.env("XRD_CPUSEPGWRTRD", "0").args(["-s", "-f"]);
        command.args(if tree { ["-r", "--parallel"] } else { ["-S", "4"] });
        if tree {
            command.arg("4");
        }
        command.arg(format!("root://127.0.0.1:{}/{}", ports.port, ports.source.display()));
        command.arg(if tree { out.to_owned() } else { out.join(ports.name()) });
        Ok(command)
    });
    start("xrdcp-S4", PLAIN, base, source, server, port, client)
}

fn globus(base: &Path, source: &Path, tree: bool) -> Fallible<Peer> {
    let port = free_port()?;
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid())?.ok_or("this user has no name")?.name;
    let server = Server::start(
        Command::new("globus-gridftp-server")
            .args(["-s", "-p", &port.to_string(), "-aa", "-anonymous-user", &me, "-allow-root", "-home-dir", "/"])
            .args(["-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1"]),
    )?;
    let client: Client = Box::new(move |ports, out| {
        let mut command = Command::new("globus-url-copy");
        let from = format!("ftp://127.0.0.1:{}{}", ports.port, ports.source.display());
        let to = format!("file://{}", out.join(ports.name()).display());
        if tree {
            command.args(["-binary", "-r", "-cd", "-cc", "4", "-pp"]).arg(format!("{from}/")).arg(format!("{to}/"));
        } else {
            command.args(["-binary", "-p", "4"]).arg(from).arg(to);
        }
        Ok(command)
    });
    start("globus-p4", PLAIN, base, source, server, port, client)
}

/// A server of its own with keys of its own, and a client's configuration that knows it.
fn sshd(base: &Path, port: u16) -> Fallible<(Server, PathBuf)> {
    let dir = base.join(format!("sshd-{port}"));
    fs::create_dir_all(&dir)?;
    let at = dir.display();
    for key in ["host", "user"] {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)).status()?;
        if !made.success() {
            return Err("ssh-keygen failed".into());
        }
    }
    fs::copy(dir.join("user.pub"), dir.join("allowed"))?;
    fs::write(
        dir.join("conf"),
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/allowed\nPidFile {at}/pid\n\
             StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
        ),
    )?;
    fs::write(
        dir.join("client"),
        format!(
            "Host *\nPort {port}\nIdentityFile {at}/user\nStrictHostKeyChecking no\nUserKnownHostsFile {at}/known\n\
             LogLevel ERROR\nCiphers aes128-gcm@openssh.com\n"
        ),
    )?;
    if nix::unistd::geteuid().is_root() {
        fs::create_dir_all("/run/sshd")?; // it wants it for privilege separation
    }
    let program = ["/usr/sbin/sshd", "/usr/bin/sshd"].into_iter().find(|p| Path::new(p).exists()).unwrap_or("sshd");
    let server = Server::start(Command::new(program).arg("-D").arg("-f").arg(dir.join("conf")))?;
    wait_for(port)?;
    Ok((server, dir.join("client")))
}

fn scp(base: &Path, source: &Path) -> Fallible<Peer> {
    let port = free_port()?;
    let (server, config) = sshd(base, port)?;
    let client: Client = Box::new(move |ports, out| {
        let mut command = Command::new("scp");
        command.args(["-q", "-r", "-F"]).arg(&config);
        command.arg(format!("127.0.0.1:{}", ports.source.display())).arg(out);
        Ok(command)
    });
    let traits = Traits { verify: "cipher's tag", durable: "none", encrypted: true };
    start("scp", traits, base, source, server, port, client)
}

/// Tools that start their other end over ssh.
fn over_ssh(name: &str, program: &Path, base: &Path, source: &Path) -> Fallible<Peer> {
    let port = free_port()?;
    let (server, config) = sshd(base, port)?;
    let (kind, program) = (name.to_owned(), program.to_owned());
    let client: Client = Box::new(move |ports, out| {
        let mut command = Command::new(&program);
        let remote = |path: &Path| format!("127.0.0.1:{}", path.display());
        let port = ports.port.to_string();
        match kind.as_str() {
            // It only pushes.
            "escp" => command
                .args(["-q", "-r", "-t", "2", "-P", &port, "-D"])
                .arg(&program)
                .arg("-F")
                .arg(&config)
                .arg(&ports.source)
                .arg(remote(out)),
            "mscp" => command
                .args(["-q", "-n", "2", "-P", &port, "-c", "aes128-gcm@openssh.com", "-F"])
                .arg(&config)
                .arg(remote(&ports.source))
                .arg(out),
            // -S: how it is started at a source that is remote.
            _ => command
                .args(["-f", "-4", "-s", "4", "-w", "4M", "-S"])
                .arg(format!("ssh -x -a -F {} %4 %I -l %U %H {}", config.display(), program.display()))
                .arg(remote(&ports.source))
                .arg(out),
        };
        Ok(command)
    });
    let (verify, encrypted) = match name {
        "escp" => ("BLAKE3", true),
        "mscp" => ("cipher's tag", true),
        _ => ("none", false),
    };
    start(name, Traits { verify, durable: "none", encrypted }, base, source, server, port, client)
}

/// `tar | socat` to `socat | tar`: one stream, no protocol.
struct TarSocat {
    source: PathBuf,
}

impl Candidate for TarSocat {
    fn name(&self) -> &str {
        "tar-socat"
    }

    fn traits(&self) -> Traits {
        PLAIN
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let port = free_port()?;
        let sh = |script: String| {
            let mut command = Command::new("sh");
            command.args(["-e", "-c"]).arg(script);
            command
        };
        let receive = format!(
            "socat -u -b 1048576 TCP-LISTEN:{port},bind=127.0.0.1 STDOUT | tar -b 2048 -xf - -C '{}'",
            out.display()
        );
        let (root, name) = (self.source.parent().expect("made by us"), self.source.file_name().expect("made by us"));
        let send = format!(
            "tar -b 2048 -cf - -C '{}' '{}' | socat -u -b 1048576 STDIN TCP:127.0.0.1:{port},retry=100,interval=0.01",
            root.display(),
            name.to_string_lossy()
        );
        two_ended(sh(receive), sh(send))
    }
}

/// Runs a receiver and a sender to their ends.
fn two_ended(mut receive: Command, mut send: Command) -> Fallible<Outcome> {
    let before = super::cpu_of_ended();
    let receiver = receive.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(50));
    to_the_end(receiver, &mut send, before)
}

/// Runs the sender, then waits for a receiver that listens already. `before`: the CPU of ended children before it began.
fn to_the_end(mut receiver: std::process::Child, send: &mut Command, before: f64) -> Fallible<Outcome> {
    let began = std::time::Instant::now();
    let Timed { cpu: cpu_source, rss: rss_source, .. } = timed(send, &[])?;
    if !receiver.wait()?.success() {
        return Err("the receiver failed".into());
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu_destination = super::cpu_of_ended() - before - cpu_source;
    Ok(Outcome { wall, cpu_source, cpu_destination, rss_source, ..Outcome::default() })
}

/// Given by hand: Debian does not carry it.
struct Wdt {
    program: PathBuf,
    source: PathBuf,
}

impl Candidate for Wdt {
    fn name(&self) -> &str {
        "wdt"
    }

    fn traits(&self) -> Traits {
        Traits { verify: "crc32c", durable: "fsync", encrypted: false }
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        use std::io::BufRead as _;
        let options = ["-ipv4", "-num_ports", "4", "-encryption_type", "none", "-enable_checksum"];
        let before = super::cpu_of_ended();
        let target =
            if self.source.is_dir() { out.join(self.source.file_name().expect("made by us")) } else { out.to_owned() };
        let mut receiver = Command::new(&self.program)
            .args(options)
            .args(["-start_port", "0", "-overwrite", "-directory"])
            .arg(target)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut url = String::new();
        std::io::BufReader::new(receiver.stdout.take().expect("piped")).read_line(&mut url)?;
        let mut send = Command::new(&self.program);
        send.args(options).arg("-connection_url").arg(url.trim());
        if self.source.is_dir() {
            send.arg("-directory").arg(&self.source);
        } else {
            let list = out.with_extension("wdt-list");
            fs::write(&list, format!("{}\n", self.source.file_name().expect("made by us").to_string_lossy()))?;
            send.arg("-directory").arg(self.source.parent().expect("made by us")).arg("-manifest").arg(list);
        }
        to_the_end(receiver, &mut send, before)
    }
}
