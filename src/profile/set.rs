//! The profiles that a process knows, and which of them is for a peer.

use super::{Day, Pattern, Profile, ProfileUse};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// Profiles that the program brings along.
const SHIPPED: [(&str, &str); 11] = [
    ("loopback", include_str!("../../tuning/profiles/loopback.toml")),
    ("lan-10g", include_str!("../../tuning/profiles/lan-10g.toml")),
    ("lan-25g", include_str!("../../tuning/profiles/lan-25g.toml")),
    ("lan-100g", include_str!("../../tuning/profiles/lan-100g.toml")),
    ("continental-1g", include_str!("../../tuning/profiles/continental-1g.toml")),
    ("continental-10g", include_str!("../../tuning/profiles/continental-10g.toml")),
    ("continental-100g", include_str!("../../tuning/profiles/continental-100g.toml")),
    ("intercontinental-10g", include_str!("../../tuning/profiles/intercontinental-10g.toml")),
    ("intercontinental-100g", include_str!("../../tuning/profiles/intercontinental-100g.toml")),
    ("lossy", include_str!("../../tuning/profiles/lossy.toml")),
    ("small-files", include_str!("../../tuning/profiles/small-files.toml")),
];

/// A profile and what it is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The file's name without `.toml`.
    pub name: String,
    /// Where it comes from: a path, or `shipped`.
    pub origin: String,
    /// Its values, checked.
    pub profile: Profile,
    patterns: Vec<Pattern>,
}

/// A profile and why it was taken.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The profile.
    pub named: Arc<Named>,
    /// In a few words.
    pub why: String,
}

impl Chosen {
    /// As reports tell it.
    pub fn told(&self) -> ProfileUse {
        ProfileUse { name: self.named.name.clone(), why: self.why.clone(), measured: self.named.profile.measured }
    }
}

/// Profiles in order of precedence: of two with one name the first counts.
#[derive(Debug, Clone, Default)]
pub struct Profiles(Vec<Arc<Named>>);

impl Profiles {
    /// Adds a profile behind those that are there.
    ///
    /// # Errors
    /// A value that cannot be: the key and a sentence.
    pub fn add(&mut self, name: &str, origin: &str, profile: Profile) -> Result<(), (&'static str, String)> {
        profile.check()?;
        let patterns = profile.peers.iter().filter_map(|peer| Pattern::parse(peer).ok()).collect();
        self.0.push(Arc::new(Named { name: name.to_owned(), origin: origin.to_owned(), profile, patterns }));
        Ok(())
    }

    /// Adds what the program brings along.
    pub fn with_shipped(mut self) -> Self {
        for (name, text) in SHIPPED {
            let profile = toml::from_str(text).expect("a shipped profile is read by a test");
            self.add(name, "shipped", profile).expect("a shipped profile is checked by a test");
        }
        self
    }

    /// All names, in order of precedence, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        self.0.iter().for_each(|named| {
            if !names.contains(&named.name.as_str()) {
                names.push(&named.name);
            }
        });
        names
    }

    /// The profile of that name.
    pub fn named(&self, name: &str) -> Option<Arc<Named>> {
        self.0.iter().find(|named| named.name == name).cloned()
    }

    /// The profile whose pattern fits a peer most closely; among equals the first. Names are what the peer was called,
    /// addresses where it is reached. A profile past its day is left out.
    pub fn choose(&self, names: &[&str], addresses: &[IpAddr], today: Day) -> Option<Chosen> {
        let mut best: Option<(usize, Chosen)> = None;
        for (at, named) in self.0.iter().enumerate() {
            let hidden = self.0[..at].iter().any(|first| first.name == named.name);
            if hidden || named.profile.expires.is_some_and(|last| last < today) {
                continue;
            }
            for pattern in &named.patterns {
                let name = names.iter().find(|name| pattern.matches_name(name)).map(|name| (*name).to_owned());
                let address =
                    || addresses.iter().find(|a| pattern.matches_address(**a)).map(|a| a.to_canonical().to_string());
                let Some(peer) = name.or_else(address) else { continue };
                if best.as_ref().is_none_or(|(weight, _)| pattern.weight() > *weight) {
                    let why = format!("{peer} matches {pattern} of {}", named.origin);
                    best = Some((pattern.weight(), Chosen { named: named.clone(), why }));
                }
            }
        }
        best.map(|(_, chosen)| chosen)
    }
}

/// Profiles that may be read again while transfers run. Empty at first.
#[derive(Debug, Clone, Default)]
pub struct SharedProfiles(Arc<RwLock<Arc<Profiles>>>);

impl SharedProfiles {
    /// With these.
    pub fn new(profiles: Profiles) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(profiles))))
    }

    /// As they are now.
    pub fn get(&self) -> Arc<Profiles> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces them; transfers that run keep what they have.
    pub fn set(&self, profiles: Profiles) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(profiles);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Window;

    fn today() -> Day {
        Day::parse("2026-11-25").unwrap()
    }

    fn profile(peers: &[&str]) -> Profile {
        Profile { peers: peers.iter().map(|p| (*p).to_owned()).collect(), ..Profile::default() }
    }

    #[test]
    fn every_shipped_profile_is_sound_and_every_file_is_shipped() {
        let profiles = Profiles::default().with_shipped();
        assert_eq!(profiles.names().len(), SHIPPED.len());
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/profiles");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
            .collect();
        let mut names: Vec<String> = profiles.names().into_iter().map(str::to_owned).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/README.md")).unwrap();
        for (name, text) in SHIPPED {
            let profile = &profiles.named(name).unwrap().profile;
            assert!(!profile.about.is_empty() && readme.contains(&format!("`{name}`")), "{name} is not explained");
            // A figure that nobody measured is not to be read as one that somebody did.
            assert_eq!(profile.measured, profile.provenance.date.is_some(), "{name}: measured goes with a date");
            assert!(text.contains("measured = "), "{name} says whether it was measured");
            // Windows beyond half of what the largest scale allows cannot be filled (tcp(7), RFC 7323).
            assert!(
                profile
                    .sockets
                    .window
                    .is_none_or(|w| w == Window::Auto || matches!(w, Window::Fixed(b) if b <= 512 << 20))
            );
        }
    }

    #[test]
    fn the_closest_pattern_wins_and_says_why() {
        let mut profiles = Profiles::default();
        for (name, peers) in [
            ("wide", &["10.0.0.0/8"][..]),
            ("near", &["10.1.0.0/16", "192.0.2.1"]),
            ("site", &["*.example.org"]),
            ("host", &["dtn1.example.org"]),
        ] {
            profiles.add(name, &format!("/etc/{name}.toml"), profile(peers)).unwrap();
        }
        let choose = |names: &[&str], address: &str| {
            let chosen = profiles.choose(names, &[address.parse().unwrap()], today());
            chosen.map(|chosen| (chosen.named.name.clone(), chosen.why))
        };
        let (name, why) = choose(&[], "10.1.2.3").unwrap();
        assert_eq!((name.as_str(), why.as_str()), ("near", "10.1.2.3 matches 10.1.0.0/16 of /etc/near.toml"));
        assert_eq!(choose(&[], "::ffff:10.9.9.9").unwrap().0, "wide");
        assert_eq!(choose(&["dtn2.example.org"], "10.1.2.3").unwrap().0, "site", "names say more than addresses");
        assert_eq!(choose(&["DTN1.example.org"], "10.1.2.3").unwrap().0, "host");
        assert_eq!(choose(&["elsewhere"], "203.0.113.1"), None);
    }

    #[test]
    fn own_profiles_hide_shipped_ones_and_old_ones_are_not_chosen() {
        let mut own = Profiles::default();
        let expired = Profile { expires: Some(Day::parse("2026-11-24").unwrap()), ..profile(&["192.0.2.0/24"]) };
        own.add("old", "old.toml", expired).unwrap();
        own.add("loopback", "mine.toml", profile(&[])).unwrap();
        let profiles = own.with_shipped();
        let at = |address: &str| profiles.choose(&[], &[address.parse().unwrap()], today());
        assert!(at("192.0.2.7").is_none(), "past its day");
        assert!(profiles.choose(&[], &["192.0.2.7".parse().unwrap()], Day::parse("2026-11-24").unwrap()).is_some());
        assert!(at("127.0.0.1").is_none(), "the own `loopback` has no pattern");
        assert_eq!(profiles.named("loopback").unwrap().origin, "mine.toml");
        assert_eq!(
            Profiles::default().with_shipped().choose(&[], &["::1".parse().unwrap()], today()).unwrap().named.name,
            "loopback"
        );
        let mut bad = Profiles::default();
        assert_eq!(bad.add("bad", "bad.toml", profile(&["a b"])).unwrap_err().0, "peers");
    }

    #[test]
    fn profiles_are_exchanged_while_others_hold_them() {
        let shared = SharedProfiles::default();
        let before = shared.get();
        shared.set(Profiles::default().with_shipped());
        assert!(before.names().is_empty() && shared.get().named("lossy").is_some());
    }
}
