use super::*;
use crate::control::client::{ClientOptions, PeerClient};
use crate::control::settings::AgentLayer;
use crate::control::url::PeerUrl;
use std::path::Path;

fn config(dir: &Path, change: impl FnOnce(&mut AgentLayer)) -> AgentConfig {
    let loopback = Some("127.0.0.1:0".parse().unwrap());
    let mut layer = AgentLayer {
        root: Some(dir.join("root")),
        state: Some(dir.join("state")),
        http: loopback,
        data: loopback,
        ..AgentLayer::default()
    };
    change(&mut layer);
    AgentConfig::resolve(None, layer).unwrap()
}

fn dir_with_root() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    dir
}

fn client(ready: &Ready, fingerprint: Option<&str>) -> PeerClient {
    let url = PeerUrl::parse(format!("lh://{}/", ready.http).as_bytes()).unwrap();
    let options = ClientOptions {
        token_file: Some(ready.token_file.clone()),
        fingerprint: fingerprint.map(|f| f.parse().unwrap()),
        known_peers: Some("/nonexistent".into()),
        ..ClientOptions::default()
    };
    PeerClient::new(url, options).unwrap()
}

/// Mutual TLS: an agent that requires certificates answers those of its authority and nobody else, whatever token they bring.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_certificate_of_the_authority_is_refused() {
    use crate::control::pki;
    use crate::control::tls::{ClientCertificates, OwnTls};
    let dir = dir_with_root();
    let at = |name: &str| dir.path().join(name);
    for name in ["ca", "other"] {
        pki::init(&at(name), 10).unwrap();
        std::fs::create_dir(at(&format!("{name}-out"))).unwrap();
    }
    let issue = |ca: &str, name: &str| {
        let issued = pki::issue(&at(ca), name, &["127.0.0.1".into()], 1, &at(&format!("{ca}-out"))).unwrap();
        TlsFiles { certificate: issued.certificate, key: issued.key }
    };
    let (own, peer, foreign) = (issue("ca", "one"), issue("ca", "two"), issue("other", "three"));
    let authority = at("ca").join(pki::CA_CERTIFICATE);
    for certificates in [ClientCertificates::Required, ClientCertificates::Optional] {
        let agent = Agent::start(&config(dir.path(), |l| {
            (l.tls_cert, l.tls_key) = (Some(own.certificate.clone()), Some(own.key.clone()));
            (l.tls_ca, l.client_certificates) = (Some(authority.clone()), Some(certificates));
        }))
        .await
        .unwrap();
        let ready = agent.ready().clone();
        let ask = |files: Option<TlsFiles>| {
            let options = ClientOptions {
                token_file: Some(ready.token_file.clone()),
                fingerprint: Some(ready.fingerprint.parse().unwrap()),
                known_peers: Some("/nonexistent".into()),
                tls: files.map(|files| OwnTls { files: Some(files), authority: authority.clone() }),
                ..ClientOptions::default()
            };
            let url = PeerUrl::parse(format!("lh://{}/", ready.http).as_bytes()).unwrap();
            async move { PeerClient::new(url, options).unwrap().status().await }
        };
        assert_eq!(ask(Some(peer.clone())).await.unwrap().agent, ready.agent);
        let error = ask(Some(foreign.clone())).await.unwrap_err();
        assert!(error.class == Class::Denied && error.what.contains("--tls-cert"), "{error}");
        match certificates {
            ClientCertificates::Required => {
                let error = ask(None).await.unwrap_err();
                assert!(error.class == Class::Denied && error.what.contains("CertificateRequired"), "{error}");
            }
            _ => assert!(ask(None).await.is_ok()),
        }
        // A reload keeps to it.
        assert!(agent.reload().is_empty());
        assert!(ask(Some(foreign.clone())).await.is_err() && ask(Some(peer.clone())).await.is_ok());
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_starts_answers_reloads_and_stops() {
    let dir = dir_with_root();
    let profiles = dir.path().join("profiles");
    std::fs::create_dir(&profiles).unwrap();
    let agent = Agent::start(&config(dir.path(), |l| l.profiles = Some(profiles.clone()))).await.unwrap();
    let ready = agent.ready().clone();
    let line: serde_json::Value = serde_json::to_value(&ready).unwrap();
    for key in ["http", "data", "fingerprint", "agent", "token_file"] {
        assert!(line.get(key).is_some(), "{key}");
    }
    assert_ne!(ready.http.port(), 0);
    let status = client(&ready, None).status().await.unwrap();
    assert_eq!(status.agent, ready.agent);
    assert!(client(&ready, Some(&ready.fingerprint)).status().await.is_ok());

    // A new certificate counts after the reload, for new connections.
    std::fs::remove_file(dir.path().join("state/tls-key.pem")).unwrap();
    tls::ensure_self_signed(&StateDir::open(&dir.path().join("state")).unwrap()).unwrap();
    assert!(client(&ready, Some(&ready.fingerprint)).status().await.is_ok(), "not before the reload");
    assert!(agent.reload().is_empty());
    assert!(client(&ready, Some(&ready.fingerprint)).status().await.is_err());
    assert!(client(&ready, None).status().await.is_ok());

    // A reload that cannot be changes nothing and says what.
    std::fs::write(dir.path().join("state/tls-cert.pem"), "junk").unwrap();
    std::fs::write(profiles.join("wan.toml"), "streams = ").unwrap();
    let errors: Vec<_> = agent.reload().iter().map(AgentError::to_string).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("tls-cert.pem") && errors[1].contains("wan.toml, line 1"), "{errors:?}");
    assert!(client(&ready, None).status().await.is_ok());

    let begin = Instant::now();
    agent.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(client(&ready, None).status().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_token_outlive_a_restart() {
    let dir = dir_with_root();
    let config = config(dir.path(), |_| {});
    let first = Agent::start(&config).await.unwrap();
    let (ready, token) = (first.ready().clone(), std::fs::read(&first.ready().token_file).unwrap());
    let error = Agent::start(&config).await.unwrap_err();
    assert!(matches!(error, AgentError::State(StateError::Busy { .. })) && error.exit_code() == 5, "{error}");
    first.stop().await;
    let second = Agent::start(&config).await.unwrap();
    assert_eq!((second.ready().agent, &second.ready().fingerprint), (ready.agent, &ready.fingerprint));
    assert_eq!(std::fs::read(&second.ready().token_file).unwrap(), token);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_with_its_code() {
    let dir = dir_with_root();
    let path = dir.path();
    let start = async |config: AgentConfig| Agent::start(&config).await.map(|_| ()).unwrap_err();
    let error = start(config(path, |l| l.root = Some(path.join("none")))).await;
    assert!(error.exit_code() == 4 && error.to_string().contains("none"), "{error}");
    for state in [path.join("root/state"), path.join("root")] {
        let error = start(config(path, |l| l.state = Some(state.clone()))).await;
        assert!(matches!(error, AgentError::StateInRoot { .. }) && error.exit_code() == 7, "{error}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = start(config(path, |l| l.http = Some(taken.local_addr().unwrap()))).await;
    assert!(matches!(error, AgentError::Bind { .. }) && error.exit_code() == 5, "{error}");
    let error = start(config(path, |l| l.transfer_log = Some(path.join("no/dir/log")))).await;
    assert!(matches!(error, AgentError::TransferLog(_)), "{error}");
    let error = start(config(path, |l| l.advertise_data = Some(vec!["no port".into()]))).await;
    assert!(matches!(error, AgentError::Advertise { .. }), "{error}");
    // As another user would see it; root reads everything.
    let denied = RootError::Denied { path: path.to_owned(), errno: nix::errno::Errno::EACCES };
    assert_eq!(AgentError::Root(denied).exit_code(), 10);
}
