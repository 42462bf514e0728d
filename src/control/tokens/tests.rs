use super::*;
use std::os::unix::fs::PermissionsExt;

fn store() -> (tempfile::TempDir, StateDir, TokenStore) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let tokens = TokenStore::new(&state);
    (dir, state, tokens)
}

fn new(name: &str, prefixes: &[&str], read: bool, write: bool) -> NewToken {
    let prefixes = prefixes.iter().map(|p| parse_prefix(p).unwrap()).collect();
    NewToken { name: name.to_owned(), prefixes, read, write, ..NewToken::default() }
}

/// Every token × prefix × direction, each cell said.
#[test]
fn rights_by_prefix_and_direction() {
    let (_dir, _state, tokens) = store();
    let cases: [(&str, &[&str], bool, bool); 5] = [
        ("everything", &["/"], true, true),
        ("reader", &["/data"], true, false),
        ("writer", &["/data/in", "/drop"], false, true),
        ("both", &["data/in"], true, true),
        ("nowhere", &[], true, true),
    ];
    // Columns: read and write for each of the paths.
    let paths = ["", "data", "data/in", "data/in/x", "data/inside", "database", "drop/a", "hidden"];
    let table = [
        ("everything", ["rw", "rw", "rw", "rw", "rw", "rw", "rw", "rw"]),
        ("reader", ["", "r", "r", "r", "r", "", "", ""]),
        ("writer", ["", "", "w", "w", "", "", "w", ""]),
        ("both", ["", "", "rw", "rw", "", "", "", ""]),
        ("nowhere", ["", "", "", "", "", "", "", ""]),
    ];
    for ((name, prefixes, read, write), (row, cells)) in cases.into_iter().zip(table) {
        assert_eq!(name, row);
        let text = tokens.add(&new(name, prefixes, read, write)).unwrap();
        let principal = tokens.authenticate(text.expose()).unwrap();
        assert_eq!(principal.name, name);
        assert_eq!(principal.is_unlimited(), name == "everything");
        for (path, cell) in paths.into_iter().zip(cells) {
            let path = RelPath::new(path.as_bytes()).unwrap();
            assert_eq!(principal.check(Right::Read, &path).is_ok(), cell.contains('r'), "{name} reads {path}");
            assert_eq!(principal.check(Right::Write, &path).is_ok(), cell.contains('w'), "{name} writes {path}");
        }
    }
}

#[test]
fn expired_revoked_and_foreign_tokens_are_refused() {
    let (_dir, _state, tokens) = store();
    let (_other_dir, _other_state, other) = store();
    let foreign = other.add(&new("f", &["/"], true, true)).unwrap();
    tokens.add(&new("x", &["/"], true, true)).unwrap();
    assert!(matches!(tokens.authenticate(foreign.expose()), Err(TokenError::Unknown)));
    for bad in ["", "lht_", "lht_zz", "Bearer x", &"a".repeat(1 << 20)] {
        assert!(matches!(tokens.authenticate(bad), Err(TokenError::Unknown)));
    }

    let short = NewToken { lifetime: Some(Duration::ZERO), ..new("short", &["/"], true, false) };
    let expired = tokens.add(&short).unwrap();
    assert!(matches!(tokens.authenticate(expired.expose()), Err(TokenError::Expired(name)) if name == "short"));

    let text = tokens.add(&new("gone", &["/"], true, false)).unwrap();
    assert!(tokens.authenticate(text.expose()).is_ok());
    tokens.revoke("gone").unwrap();
    assert!(matches!(tokens.authenticate(text.expose()), Err(TokenError::Revoked(_))));
    assert!(matches!(tokens.revoke("never"), Err(TokenError::NoSuchName(_))));
    let states: Vec<_> = tokens.list().unwrap().into_iter().map(|t| (t.name, t.state)).collect();
    assert_eq!(states, [("gone".into(), "revoked"), ("short".into(), "expired"), ("x".into(), "active")]);

    // A name may be used again when its token is dead; the dead text stays dead.
    let fresh = tokens.add(&new("gone", &["/"], true, false)).unwrap();
    assert!(tokens.authenticate(fresh.expose()).is_ok());
    assert!(matches!(tokens.authenticate(text.expose()), Err(TokenError::Unknown)));
    assert!(matches!(tokens.add(&new("gone", &["/"], true, false)), Err(TokenError::Exists(_))));
}

#[test]
fn another_process_changes_tokens_without_a_restart() {
    let (_dir, state, agent) = store();
    let shell = TokenStore::new(&state);
    assert!(matches!(agent.authenticate(&format!("lht_{}", "0".repeat(64))), Err(TokenError::State(_))));
    let text = shell.add(&new("t", &["/"], true, false)).unwrap();
    assert!(agent.authenticate(text.expose()).is_ok());
    shell.revoke("t").unwrap();
    assert!(matches!(agent.authenticate(text.expose()), Err(TokenError::Revoked(_))));
}

#[test]
fn a_damaged_exposed_or_missing_file_denies_everybody() {
    let (_dir, state, tokens) = store();
    let text = tokens.add(&new("t", &["/"], true, true)).unwrap();
    assert!(tokens.authenticate(text.expose()).is_ok());
    let path = state.file("tokens.toml");
    let good = std::fs::read(&path).unwrap();

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(tokens.authenticate(text.expose()), Err(TokenError::State(StateError::Exposed { .. }))));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(tokens.authenticate(text.expose()).is_ok());

    std::fs::write(&path, [good.as_slice(), b"\n[[token]\n"].concat()).unwrap();
    let error = tokens.authenticate(text.expose()).unwrap_err().to_string();
    assert!(error.contains("damaged") && !error.contains("sha256"), "{error}");

    std::fs::remove_file(&path).unwrap();
    assert!(tokens.authenticate(text.expose()).is_err());
    state::write_secret(&path, &good).unwrap();
    assert!(tokens.authenticate(text.expose()).is_ok());
}

#[test]
fn the_first_start_makes_one_admin_token() {
    let (_dir, state, tokens) = store();
    let path = tokens.ensure_admin(&state).unwrap();
    let first = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    tokens.ensure_admin(&state).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
    assert!(tokens.authenticate(&first).unwrap().is_unlimited());

    // Cut off before tokens.toml was written: the token on disk is taken up.
    std::fs::remove_file(state.file("tokens.toml")).unwrap();
    tokens.ensure_admin(&state).unwrap();
    assert!(tokens.authenticate(&first).is_ok());

    // A revoked admin does not come back with a restart.
    tokens.revoke(ADMIN).unwrap();
    tokens.ensure_admin(&state).unwrap();
    assert!(matches!(tokens.authenticate(&first), Err(TokenError::Revoked(_))));

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(tokens.ensure_admin(&state), Err(TokenError::State(StateError::Exposed { .. }))));
}

#[test]
fn the_file_and_debug_hold_no_secret() {
    let (_dir, state, tokens) = store();
    let text = tokens.add(&new("t", &["/"], true, true)).unwrap();
    let secret = text.expose().strip_prefix(TOKEN_MARK).unwrap();
    let file = std::fs::read_to_string(state.file("tokens.toml")).unwrap();
    tokens.authenticate(text.expose()).unwrap();
    assert!(!file.contains(secret));
    assert!(!format!("{text:?} {tokens:?}").contains(secret));
}

#[test]
fn names_and_prefixes_are_checked() {
    let (_dir, _state, tokens) = store();
    for name in ["", "a b", "a\n", "é", &"x".repeat(65)] {
        assert!(matches!(tokens.add(&new(name, &["/"], true, true)), Err(TokenError::BadName(_))), "{name:?}");
    }
    assert!(matches!(tokens.add(&new("n", &["/"], false, false)), Err(TokenError::NoRight)));
    assert_eq!(parse_prefix("/a/b/"), Some(RelPath::new(b"a/b").unwrap()));
    assert_eq!(parse_prefix("/"), Some(RelPath::default()));
    assert_eq!(parse_prefix("a/../b"), None);
    let odd = RelPath::new(b"a/\xff").unwrap();
    assert_eq!(parse_prefix(&prefix_text(&odd)), Some(odd));
}

/// Roles and datasets come back as they were given; files from before there were any go on working, and their admin has all.
#[test]
fn roles_beside_path_rights() {
    let (_dir, state, tokens) = store();
    let roles: BTreeSet<Role> = [Role::Submitter, Role::Approver].into();
    let datasets: Vec<DatasetName> = vec!["/cosmics".parse().unwrap()];
    let asked = NewToken { roles: roles.clone(), datasets: datasets.clone(), ..new("ops", &[], false, false) };
    let principal = tokens.authenticate(tokens.add(&asked).unwrap().expose()).unwrap();
    assert_eq!((principal.roles.clone(), principal.datasets.clone()), (roles, datasets));
    assert!(principal.check(Right::Read, &RelPath::default()).is_err());
    assert!(matches!(tokens.add(&new("none", &["/"], false, false)), Err(TokenError::NoRight)));

    let file = tokens.ensure_admin(&state).unwrap();
    let text = std::fs::read_to_string(state.file("tokens.toml")).unwrap();
    let old: String = text
        .lines()
        .filter(|l| !l.starts_with("roles") && !l.starts_with("datasets"))
        .map(|l| format!("{l}\n"))
        .collect();
    assert_ne!(old, text);
    state::write_secret(&state.file("tokens.toml"), old.as_bytes()).unwrap();
    let admin = tokens.authenticate(&state::read_secret(&file).unwrap()).unwrap();
    assert!(Role::ALL.iter().all(|role| admin.is(*role)) && admin.is_unlimited() && admin.is_unscoped());
    assert!(tokens.list().unwrap().iter().find(|t| t.name == "ops").unwrap().roles.is_empty());
}
