//! A private authority for the agents of one service: a key and a certificate in a directory, and certificates that it issues.
//! Nothing is revoked: what is issued ends by itself, and who must end all of it makes a new authority.

use super::state::{self, StateError};
use super::tls::{self, Fingerprint, TlsError};
use aws_lc_rs::digest::{SHA256, digest};
use jiff::civil::Date;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The authority's certificate in its directory: what agents trust. No secret.
pub const CA_CERTIFICATE: &str = "ca-cert.pem";
/// Its key.
pub const CA_KEY: &str = "ca-key.pem";
/// How long an authority lives when nothing is said.
pub const CA_DAYS: u32 = 3653;
/// How long a certificate does.
pub const DAYS: u32 = 398;
/// The longest life of either.
pub const MAX_DAYS: u32 = 36_525;
/// Names of one certificate.
pub const MAX_HOSTS: usize = 64;

/// Why there is no authority or certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// What is there is never replaced: others may trust it.
    #[error("{} is there already and is not replaced: name another place, or move it away first", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A file or directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The authority's key, or what it issued, does not fit its certificate.
    #[error("{} is not the authority of {CA_KEY} beside it: {reason}", path.display())]
    Mismatch {
        /// The certificate.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A host that is neither a name nor an address.
    #[error("`{0}` is no host: name it as clients dial it, without port: dtn1.example.org, 192.0.2.7, 2001:db8::1")]
    Host(String),
    /// A name that no file or subject should have.
    #[error(
        "`{0}` is no name for a certificate: use 1 to 64 letters, digits, `.`, `_` and `-`, not `ca` and no `.` first"
    )]
    Name(String),
    /// Too short or too long.
    #[error("a certificate lives for 1 to {MAX_DAYS} days")]
    Days,
    /// Making it failed.
    #[error("cannot make it: {0}")]
    Make(#[from] rcgen::Error),
    /// Reading it back failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// For `tls_cert`.
    pub certificate: PathBuf,
    /// For `tls_key`, 0600.
    pub key: PathBuf,
    /// Of the certificate.
    pub fingerprint: Fingerprint,
    /// The first day on which it does not count any more.
    pub until: Date,
}

fn validity(params: &mut CertificateParams, days: u32) -> Result<Date, PkiError> {
    if days == 0 || days > MAX_DAYS {
        return Err(PkiError::Days);
    }
    let now = jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now()).date();
    let day = |date: Date| {
        // Months and days of a calendar fit.
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    // Clocks that are behind by less than a day take it as well.
    let begin = now.saturating_sub(jiff::Span::new().days(1));
    let end = now.saturating_add(jiff::Span::new().days(i64::from(days) + 1));
    (params.not_before, params.not_after) = (day(begin), day(end));
    Ok(end)
}

fn serial() -> Result<SerialNumber, StateError> {
    let mut bytes = state::random::<16>()?;
    // A positive number, as RFC 5280 wants it.
    bytes[0] = bytes[0] & 0x7f | 0x01;
    Ok(SerialNumber::from_slice(&bytes))
}

/// The authority's parameters follow from its key, so that what it issues names it in the same way ever after.
fn authority(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let id = hex::encode(&digest(&SHA256, key.public_key_raw()).as_ref()[..8]);
    params.distinguished_name = named(&format!("Longhaul authority {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut out = DistinguishedName::new();
    out.push(DnType::CommonName, name);
    out
}

/// Makes an authority in `dir` (made 0700 if missing). The first day on which it does not count any more.
///
/// # Errors
/// [`PkiError::Exists`] if one of its files is there.
pub fn init(dir: &Path, days: u32) -> Result<(Fingerprint, Date), PkiError> {
    let io_error = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| StateError::Io { doing, path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make", dir))?;
    for name in [CA_CERTIFICATE, CA_KEY] {
        refuse(&dir.join(name))?;
    }
    let key = KeyPair::generate()?;
    let mut params = authority(&key);
    params.serial_number = Some(serial()?);
    let until = validity(&mut params, days)?;
    let certificate = params.self_signed(&key)?;
    create(&dir.join(CA_KEY), key.serialize_pem().as_bytes(), 0o600)?;
    create(&dir.join(CA_CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
    Ok((Fingerprint::of(certificate.der()), until))
}

/// Issues a certificate for the agent `name`, reached as `hosts`, by the authority in `dir`, into `out`: `NAME-cert.pem`,
/// `NAME-key.pem`, and [`CA_CERTIFICATE`] if that is not there. It serves and dials.
///
/// # Errors
/// [`PkiError::Exists`] if one of its files is there.
pub fn issue(dir: &Path, name: &str, hosts: &[String], days: u32, out: &Path) -> Result<Issued, PkiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 64 || name == "ca" || name.starts_with('.') || !name.bytes().all(allowed) {
        return Err(PkiError::Name(crate::relpath::escape(name.as_bytes()).chars().take(80).collect()));
    }
    for host in hosts {
        let good = rustls::pki_types::ServerName::try_from(host.as_str()).is_ok() && hosts.len() <= MAX_HOSTS;
        if !good {
            return Err(PkiError::Host(crate::relpath::escape(host.as_bytes()).chars().take(80).collect()));
        }
    }
    let (certificate, key) = (out.join(format!("{name}-cert.pem")), out.join(format!("{name}-key.pem")));
    refuse(&certificate)?;
    refuse(&key)?;

    let ca_path = dir.join(CA_CERTIFICATE);
    let ca_pem = tls::read_public(&ca_path)?;
    let ca_key_path = dir.join(CA_KEY);
    let ca_key = KeyPair::from_pem(&state::read_secret(&ca_key_path)?)
        // The reason is left out: a parser's message may quote the key.
        .map_err(|_| StateError::Damaged { path: ca_key_path, reason: "it is no private key in PEM".to_owned() })?;
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(|_| PkiError::Host(hosts.join(" ")))?;
    params.distinguished_name = named(name);
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let until = validity(&mut params, days)?;
    let own = KeyPair::generate()?;
    let ca = authority(&ca_key);
    let made: Certificate = params.signed_by(&own, &Issuer::from_params(&ca, &ca_key))?;
    // Before anything is written: whoever trusts the authority will take it.
    tls::check_issued(&ca_path, made.der()).map_err(|reason| PkiError::Mismatch { path: ca_path.clone(), reason })?;

    let trust = out.join(CA_CERTIFICATE);
    if !trust.exists() {
        create(&trust, ca_pem.as_bytes(), 0o644)?;
    }
    create(&key, own.serialize_pem().as_bytes(), 0o600)?;
    create(&certificate, made.pem().as_bytes(), 0o644)?;
    Ok(Issued { certificate, key, fingerprint: Fingerprint::of(made.der()), until })
}

fn refuse(path: &Path) -> Result<(), PkiError> {
    match path.symlink_metadata() {
        Ok(_) => Err(PkiError::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// A new file, durable when this returns; what is there, a link too, is never written to.
fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => File::open(dir)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.to_owned() },
        _ => StateError::Io { doing: "write", path: path.to_owned(), source }.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn hosts() -> Vec<String> {
        vec!["dtn1.example.org".into(), "127.0.0.1".into(), "::1".into()]
    }

    #[test]
    fn keys_are_private_and_nothing_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
        std::fs::create_dir(&out).unwrap();
        init(&ca, CA_DAYS).unwrap();
        assert_eq!((mode(&ca), mode(&ca.join(CA_KEY)), mode(&ca.join(CA_CERTIFICATE))), (0o700, 0o600, 0o644));
        let before = std::fs::read(ca.join(CA_KEY)).unwrap();
        assert!(matches!(init(&ca, CA_DAYS), Err(PkiError::Exists { .. })));
        std::fs::remove_file(ca.join(CA_CERTIFICATE)).unwrap();
        assert!(matches!(init(&ca, CA_DAYS), Err(PkiError::Exists { .. })), "half of an authority");
        assert_eq!(std::fs::read(ca.join(CA_KEY)).unwrap(), before);

        let ca = dir.path().join("ca2");
        init(&ca, CA_DAYS).unwrap();
        let issued = issue(&ca, "dtn1", &hosts(), DAYS, &out).unwrap();
        assert_eq!((mode(&issued.key), mode(&issued.certificate)), (0o600, 0o644));
        assert_eq!(std::fs::read(out.join(CA_CERTIFICATE)).unwrap(), std::fs::read(ca.join(CA_CERTIFICATE)).unwrap());
        let before = std::fs::read(&issued.key).unwrap();
        assert!(matches!(issue(&ca, "dtn1", &hosts(), DAYS, &out), Err(PkiError::Exists { .. })));
        std::fs::remove_file(&issued.certificate).unwrap();
        std::os::unix::fs::symlink("elsewhere", &issued.certificate).unwrap();
        assert!(matches!(issue(&ca, "dtn1", &hosts(), DAYS, &out), Err(PkiError::Exists { .. })));
        assert_eq!(std::fs::read(&issued.key).unwrap(), before);
        assert!(!out.join("elsewhere").exists());
        // A key that others can read issues nothing.
        std::fs::set_permissions(ca.join(CA_KEY), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(issue(&ca, "dtn2", &hosts(), DAYS, &out), Err(PkiError::State(StateError::Exposed { .. }))));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, other, out) = (dir.path().join("ca"), dir.path().join("other"), dir.path().join("out"));
        std::fs::create_dir(&out).unwrap();
        init(&ca, 10).unwrap();
        init(&other, 10).unwrap();
        for name in ["", "ca", "../x", "a/b", ".x", "a b", "a\n"] {
            assert!(matches!(issue(&ca, name, &hosts(), 1, &out), Err(PkiError::Name(_))), "{name}");
        }
        for host in ["", "a b", "dtn1:8470", "lh://x", "*"] {
            assert!(matches!(issue(&ca, "x", &[host.into()], 1, &out), Err(PkiError::Host(_))), "{host}");
        }
        for days in [0, MAX_DAYS + 1] {
            assert!(matches!(issue(&ca, "x", &hosts(), days, &out), Err(PkiError::Days)));
        }
        // The key of one authority, the certificate of another.
        std::fs::copy(other.join(CA_CERTIFICATE), ca.join(CA_CERTIFICATE)).unwrap();
        assert!(matches!(issue(&ca, "x", &hosts(), 1, &out), Err(PkiError::Mismatch { .. })));
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    }
}
