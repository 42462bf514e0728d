//! Flags about a link's tuning, and the profile that they lead to.

use super::fail::Fail;
use crate::clock;
use crate::control::profiles::{self, ProfilesError, load, user_dir};
use crate::control::url::PeerUrl;
use crate::limits::MAX_COLLECTORS;
use crate::profile::{Chosen, Collector, Day, Profiles, SciTag};
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

/// Which profile, and from where to dial.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TuningArgs {
    /// Tuning profile: a name, a file, or `none` [default: the one whose pattern fits the peer]
    #[arg(long, value_name = "NAME|FILE")]
    pub profile: Option<String>,
    /// Directory of profiles [default: ~/.config/longhaul/profiles, /etc/longhaul/profiles.d]
    #[arg(long, value_name = "DIR")]
    pub profiles: Option<PathBuf>,
    /// Local address to dial data streams from
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,
}

/// What the flows of a copy are, for the networks between, and who is told.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MarkingArgs {
    /// SciTag of the copy's streams, 65 to 65535: in the flow labels of IPv6 and in fireflies [default: none]
    #[arg(long, value_name = "N")]
    pub scitag: Option<SciTag>,
    /// A collector that this end sends fireflies by UDP, port 10514 if none is said; can be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub firefly: Vec<Collector>,
}

impl MarkingArgs {
    /// Refuses what nobody would send. `theirs`: no end of the copy is here.
    pub fn check(&self, theirs: bool) -> Result<(), Fail> {
        if self.firefly.len() > MAX_COLLECTORS {
            return Err(Fail::usage(format!("--firefly can be given {MAX_COLLECTORS} times")));
        }
        if theirs && !self.firefly.is_empty() {
            let what = "--firefly is for a copy with one end here: of a copy between two agents each tells its own collectors \
                        (setting `firefly`)";
            return Err(Fail::usage(what));
        }
        Ok(())
    }
}

impl From<ProfilesError> for Fail {
    fn from(error: ProfilesError) -> Self {
        let code = match &error {
            ProfilesError::Directory { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 4,
            ProfilesError::Directory { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => 10,
            _ => super::EXIT_USAGE,
        };
        Self::new(code, error.to_string())
    }
}

/// The other end, as far as a profile can be for it.
#[derive(Debug, Clone, Copy)]
pub enum Other<'a> {
    /// An agent.
    Agent(&'a PeerUrl),
    /// This process.
    Here,
    /// A copy between two agents: the link is theirs.
    Theirs,
}

impl TuningArgs {
    /// The profile for a peer: the one that was named, else the one whose pattern fits.
    pub fn choose(&self, other: Other<'_>) -> Result<Option<Chosen>, Fail> {
        match self.profile.as_deref() {
            Some("none") => return Ok(None),
            Some(path) if path.contains('/') || path.ends_with(".toml") => return from_file(Path::new(path)).map(Some),
            _ => {}
        }
        let profiles = load(self.profiles.as_deref(), user_dir().as_deref())?;
        let today = Day::of_unix(clock::unix_now());
        if let Some(name) = &self.profile {
            return named(&profiles, name, today).map(Some);
        }
        Ok(match other {
            Other::Theirs => None,
            Other::Here => profiles.choose(&["localhost"], &[Ipv4Addr::LOCALHOST.into()], today),
            Other::Agent(url) => profiles.choose(&[&url.host], &addresses(url), today),
        })
    }
}

/// Where a peer is reached. A name that cannot be resolved is for whoever dials to complain about.
fn addresses(url: &PeerUrl) -> Vec<IpAddr> {
    let found = (url.host.as_str(), url.port).to_socket_addrs();
    found.map(|all| all.map(|address| address.ip()).collect()).unwrap_or_default()
}

fn from_file(path: &Path) -> Result<Chosen, Fail> {
    let profile = profiles::read(path)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut one = Profiles::default();
    one.add(&name, &path.display().to_string(), profile).expect("it was checked when it was read");
    let named = one.named(&name).expect("it was just added");
    Ok(Chosen { named, why: format!("--profile {}", path.display()) })
}

fn named(profiles: &Profiles, name: &str, today: Day) -> Result<Chosen, Fail> {
    let Some(named) = profiles.named(name) else {
        let known = profiles.names().join(", ");
        return Err(Fail::usage(format!("there is no profile `{name}`; there are {known}")));
    };
    let why = match named.profile.expires.filter(|last| *last < today) {
        Some(last) => format!("--profile, though it expired on {last}: measure anew with `longhaul probe`"),
        None => "--profile".to_owned(),
    };
    Ok(Chosen { named, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(args: &TuningArgs, other: Other<'_>) -> Option<(String, String)> {
        args.choose(other).unwrap().map(|chosen| (chosen.named.name.clone(), chosen.why))
    }

    #[test]
    fn named_matched_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("site.toml");
        std::fs::write(&file, "peers = [\"192.0.2.0/24\"]\nexpires = \"2020-01-01\"\n").unwrap();
        std::fs::write(dir.path().join("far.toml"), "peers = [\"198.51.100.0/24\"]\n").unwrap();
        let with = |profile: Option<&str>| TuningArgs {
            profile: profile.map(str::to_owned),
            profiles: Some(dir.path().to_owned()),
            bind: None,
        };
        let url = |text: &[u8]| PeerUrl::parse(text).unwrap();
        let (far, loopback) = (url(b"lh://198.51.100.9/x"), url(b"lh://[::1]/x"));
        assert_eq!(chosen(&with(None), Other::Agent(&far)).unwrap().0, "far");
        assert_eq!(chosen(&with(None), Other::Agent(&loopback)).unwrap().0, "loopback");
        assert_eq!(chosen(&with(None), Other::Here).unwrap().0, "loopback");
        assert_eq!(chosen(&with(None), Other::Theirs), None);
        assert_eq!(chosen(&with(None), Other::Agent(&url(b"lh://192.0.2.7/x"))), None, "expired");
        let (name, why) = chosen(&with(Some("site")), Other::Agent(&far)).unwrap();
        assert!(name == "site" && why.contains("expired on 2020-01-01"), "{why}");
        let path = file.to_str().unwrap();
        assert_eq!(chosen(&with(Some(path)), Other::Here).unwrap(), ("site".to_owned(), format!("--profile {path}")));
        assert_eq!(chosen(&with(Some("none")), Other::Here), None);
        let unknown = with(Some("moon")).choose(Other::Here).unwrap_err();
        assert!(unknown.code == 2 && unknown.what.contains("intercontinental-10g"), "{unknown}");
    }
}
