//! TLS of the HTTP port: a self-signed key made on first start, and a client that trusts one fingerprint and nothing
//! else. Where a private authority ([`super::pki`]) is named, both ends may show what it issued, and trust that.

use super::state::{self, StateDir, StateError};
use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Certificates of one chain file; more is a bundle of authorities, not a server's certificate.
const MAX_CHAIN: usize = 16;

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(out)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hex digits, with or without `sha256:` before them")]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digits: String = text.trim().trim_start_matches("sha256:").chars().filter(|&c| c != ':').collect();
        let mut out = [0; 32];
        hex::decode_to_slice(digits, &mut out).map_err(|_| BadFingerprint)?;
        Ok(Self(out))
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The files.
    #[error(transparent)]
    State(#[from] StateError),
    /// The certificate cannot be read.
    #[error("{} holds no certificate in PEM form: {reason}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key does not belong to the certificate, or is of a kind that is not supported.
    #[error("{} and {} cannot serve TLS together: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A client cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Client(rustls::Error),
    /// Making a key failed.
    #[error("cannot make a TLS key: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Where certificate and key lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, 0600.
    pub key: PathBuf,
}

/// A server's TLS, ready to serve.
#[derive(Clone)]
pub struct ServerTls {
    /// For the acceptor.
    pub config: Arc<ServerConfig>,
    /// Of the leaf: what clients pin.
    pub fingerprint: Fingerprint,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerTls({})", self.fingerprint)
    }
}

/// Makes the self-signed pair in `state` if there is none. A pair that was cut off in the middle is made anew.
pub fn ensure_self_signed(state: &StateDir) -> Result<TlsFiles, TlsError> {
    let files = TlsFiles { certificate: state.file("tls-cert.pem"), key: state.file("tls-key.pem") };
    if !files.certificate.exists() || !files.key.exists() {
        // Nobody checks names of a pinned certificate; this one says what it is.
        let made = rcgen::generate_simple_self_signed(vec!["longhaul.invalid".to_owned()])?;
        state::write_secret(&files.key, made.signing_key.serialize_pem().as_bytes())?;
        state::write_secret(&files.certificate, made.cert.pem().as_bytes())?;
    }
    Ok(files)
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked for one.
    Off,
    /// Whoever shows one shows one that the authority issued.
    Optional,
    /// Nobody else is answered over TLS.
    Required,
}

/// Which clients a server takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTrust {
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    /// Off counts as no trust at all.
    pub certificates: ClientCertificates,
}

/// Loads certificate and key for a server. TLS 1.3 only: both ends are ours, or curl.
pub fn load_server(files: &TlsFiles) -> Result<ServerTls, TlsError> {
    load_server_for(files, None)
}

/// As [`load_server`], with certificates of clients.
pub fn load_server_for(files: &TlsFiles, clients: Option<&ClientTrust>) -> Result<ServerTls, TlsError> {
    let (chain, key) = pair(files)?;
    let fingerprint = Fingerprint::of(&chain[0]);
    let refuse = |source| TlsError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let provider = Arc::new(provider::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refuse)?;
    let builder = match clients.filter(|c| c.certificates != ClientCertificates::Off) {
        None => builder.with_no_client_auth(),
        Some(trust) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(&trust.authority)?, provider);
            let verifier = match trust.certificates {
                ClientCertificates::Required => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let bad = |e: rustls::server::VerifierBuilderError| TlsError::Certificate {
                path: trust.authority.clone(),
                reason: e.to_string(),
            };
            builder.with_client_cert_verifier(verifier.build().map_err(bad)?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(refuse)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(ServerTls { config: Arc::new(config), fingerprint })
}

/// The certificates of a file, never none.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |reason: String| TlsError::Certificate { path: path.to_owned(), reason };
    let pem = read_public(path)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(MAX_CHAIN)
        .collect::<Result<_, _>>()
        .map_err(|e| refuse(e.to_string()))?;
    if chain.is_empty() { Err(refuse("it is empty".to_owned())) } else { Ok(chain) }
}

fn pair(files: &TlsFiles) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = chain(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(state::read_secret(&files.key)?.as_bytes())
        // The reason is left out: a parser's message may quote the key.
        .map_err(|_| StateError::Damaged {
            path: files.key.clone(),
            reason: "it is no private key in PEM".to_owned(),
        })?;
    Ok((chain, key))
}

/// What the authorities of a file vouch for.
fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        let bad = |e: rustls::Error| TlsError::Certificate { path: path.to_owned(), reason: e.to_string() };
        roots.add(certificate).map_err(bad)?;
    }
    Ok(Arc::new(roots))
}

/// Whether a server that trusts the authority of `path` takes `certificate` of a client.
pub fn check_issued(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), String> {
    let roots = roots(path).map_err(|e| e.to_string())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(provider::default_provider()))
        .build()
        .map_err(|e| e.to_string())?;
    verifier.verify_client_cert(certificate, &[], UnixTime::now()).map(drop).map_err(|e| e.to_string())
}

/// What a client shows, and whom it trusts beside what is pinned. Files, not their content: read with every connection, so
/// that what was renewed counts at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTls {
    /// Its own certificate and key; none: it shows nothing.
    pub files: Option<TlsFiles>,
    /// The authority of servers that are not pinned, PEM.
    pub authority: PathBuf,
}

impl OwnTls {
    /// The client's configuration around a verifier that trusts `pin`, or without one the authority.
    pub fn verifier(&self, pin: Option<Fingerprint>) -> Result<Arc<PinnedVerifier>, TlsError> {
        let provider = Arc::new(provider::default_provider());
        let bad = |reason: String| TlsError::Certificate { path: self.authority.clone(), reason };
        let authority = WebPkiServerVerifier::builder_with_provider(roots(&self.authority)?, provider.clone())
            .build()
            .map_err(|e| bad(e.to_string()))?;
        Ok(Arc::new(PinnedVerifier { pin, authority: Some(authority), seen: Mutex::new(None), provider }))
    }

    /// The client's configuration around `verifier`.
    pub fn client_config(&self, verifier: &Arc<PinnedVerifier>) -> Result<ClientConfig, TlsError> {
        let Some(files) = &self.files else { return verifier.client_config().map_err(TlsError::Client) };
        let (chain, key) = pair(files)?;
        let refuse = |source| TlsError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
        let mut config = verifier.builder().map_err(refuse)?.with_client_auth_cert(chain, key).map_err(refuse)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A file that is no secret, below 4 MiB.
pub(super) fn read_public(path: &Path) -> Result<String, StateError> {
    use std::io::Read;
    let read = || -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?.take(state::SECRET_FILE_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| StateError::Io { doing: "read", path: path.to_owned(), source })
}

/// Accepts the one certificate whose fingerprint is pinned, and proves that the server has its key. Without a pin it
/// refuses every server, but remembers what it saw, for the message.
#[derive(Debug)]
pub struct PinnedVerifier {
    pin: Option<Fingerprint>,
    /// Counts where nothing is pinned.
    authority: Option<Arc<WebPkiServerVerifier>>,
    seen: Mutex<Option<Fingerprint>>,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    /// A verifier for one connection.
    pub fn new(pin: Option<Fingerprint>) -> Arc<Self> {
        let provider = Arc::new(provider::default_provider());
        Arc::new(Self { pin, authority: None, seen: Mutex::new(None), provider })
    }

    /// The certificate that the server showed.
    pub fn seen(&self) -> Option<Fingerprint> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn builder(
        self: &Arc<Self>,
    ) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
        Ok(ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.clone()))
    }

    /// The client's configuration around this verifier.
    pub fn client_config(self: &Arc<Self>) -> Result<ClientConfig, rustls::Error> {
        let mut config = self.builder()?.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = Fingerprint::of(end_entity);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        if self.pin == Some(seen) {
            return Ok(ServerCertVerified::assertion());
        }
        if let (None, Some(authority)) = (self.pin, &self.authority) {
            return authority.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_pair_is_made_once_private_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let files = ensure_self_signed(&state).unwrap();
        let first = load_server(&files).unwrap().fingerprint;
        assert_eq!(load_server(&ensure_self_signed(&state).unwrap()).unwrap().fingerprint, first);
        for path in [&files.certificate, &files.key] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load_server(&files), Err(TlsError::State(StateError::Exposed { .. }))));
        std::fs::remove_file(&files.key).unwrap();
        let second = load_server(&ensure_self_signed(&state).unwrap()).unwrap().fingerprint;
        assert_ne!(first, second);
    }

    #[test]
    fn foreign_keys_and_junk_are_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = ensure_self_signed(&StateDir::open(a.path()).unwrap()).unwrap();
        let second = ensure_self_signed(&StateDir::open(b.path()).unwrap()).unwrap();
        let mixed = TlsFiles { certificate: first.certificate.clone(), key: second.key };
        assert!(matches!(load_server(&mixed), Err(TlsError::Pair { .. })));
        std::fs::write(&first.certificate, "junk").unwrap();
        assert!(matches!(load_server(&first), Err(TlsError::Certificate { .. })));
    }

    /// Who talks to whom when there is an authority: by its own handshake, both ways.
    #[tokio::test]
    async fn what_an_authority_issued_is_trusted_for_its_host() {
        use crate::control::pki;
        let dir = tempfile::tempdir().unwrap();
        let (ca, other) = (dir.path().join("ca"), dir.path().join("other"));
        pki::init(&ca, 10).unwrap();
        pki::init(&other, 10).unwrap();
        let issue = |ca: &Path, name: &str| {
            let issued = pki::issue(ca, name, &["dtn1.example".into()], 1, dir.path()).unwrap();
            (TlsFiles { certificate: issued.certificate, key: issued.key }, issued.fingerprint)
        };
        let ((good, print), (foreign, foreign_print)) = (issue(&ca, "good"), issue(&other, "foreign"));
        let authority = ca.join(pki::CA_CERTIFICATE);
        let shake = async |server: &TlsFiles, pin: Option<Fingerprint>, host: &str| {
            let server = load_server(server).unwrap().config;
            let own = OwnTls { files: None, authority: authority.clone() };
            let config = own.client_config(&own.verifier(pin).unwrap()).unwrap();
            let (near, far) = tokio::io::duplex(64 << 10);
            let name = ServerName::try_from(host.to_owned()).unwrap();
            let dial = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, near);
            tokio::join!(dial, tokio_rustls::TlsAcceptor::from(server).accept(far)).0.is_ok()
        };
        assert!(shake(&good, None, "dtn1.example").await);
        assert!(!shake(&good, None, "dtn2.example").await, "another host's");
        assert!(!shake(&good, None, "192.0.2.1").await);
        assert!(!shake(&foreign, None, "dtn1.example").await, "another authority's");
        // What is pinned counts instead.
        assert!(shake(&good, Some(print), "dtn2.example").await);
        assert!(shake(&foreign, Some(foreign_print), "x").await);
        assert!(!shake(&good, Some(foreign_print), "dtn1.example").await);
    }

    #[test]
    fn fingerprints_as_typed() {
        let fingerprint = Fingerprint([0xab; 32]);
        for text in [fingerprint.to_string(), format!("sha256:{fingerprint}"), vec!["AB"; 32].join(":")] {
            assert_eq!(text.parse(), Ok(fingerprint));
        }
        assert_eq!("ab".parse::<Fingerprint>(), Err(BadFingerprint));
    }
}
