use super::*;
use clap::Parser as _;
use std::fs;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(line: &[&str]) -> Args {
    Line::try_parse_from(std::iter::once(&"cp").chain(line)).unwrap().args
}

fn refused(line: &[&str]) -> String {
    Line::try_parse_from(std::iter::once(&"cp").chain(line)).expect_err(&format!("{line:?}")).to_string()
}

#[test]
fn options_reach_the_engine_as_typed() {
    let line = "--streams 4 --block 512KiB --cc bbr --window 8MiB --rate 2Gbit --verify disk --preserve special --encrypt off \
                --if-exists replace --dry-run --checksum crc32c,md5 --io direct -r a b";
    let options = args(&line.split_whitespace().collect::<Vec<_>>()).options();
    let want = TransferOptions {
        streams: Some(4),
        block: 512 << 10,
        congestion: Some("bbr".into()),
        window: Some(8 << 20),
        rate: Some(2_000_000_000),
        verify: Verify::Disk,
        expect: None,
        preserve: Preserve { mode: true, times: false, special: true },
        encrypt: Some(false),
        if_exists: IfExists::Replace,
        dry_run: true,
        checksums: vec![ChecksumKind::Crc32c, ChecksumKind::Md5],
        recursive: true,
        io: IoChoice::Direct,
        ..TransferOptions::default()
    };
    assert_eq!(options, want);
    assert_eq!(args(&["a", "b"]).options(), TransferOptions::default());
}

#[test]
fn what_was_not_said_is_left_to_the_agent() {
    assert!(!args(&["a", "b"]).partial_options().0.contains_key("verify"));
    let said = args(&["--verify", "wire", "a", "b"]).partial_options();
    assert_eq!(said.0["verify"], "wire");
    // An agent reads every key that is sent.
    let resolved = args(&["--expect", "crc32c:e3069283", "a", "b"]).partial_options().resolve(Verify::Disk).unwrap();
    assert_eq!((resolved.verify, resolved.expect.unwrap().to_string()), (Verify::Disk, "crc32c:e3069283".into()));
}

#[test]
fn values_out_of_range_are_refused_with_a_hint() {
    for (line, hint) in [
        (["--streams", "0"], "1..=64"),
        (["--streams", "65"], "1..=64"),
        (["--block", "3MiB"], "power of two"),
        (["--block", "2MiB"], "power of two"),
        (["--rate", "fast"], "2Gbit"),
        (["--verify", "maybe"], "wire"),
        (["--if-exists", "perhaps"], "replace"),
        (["--preserve", "mode,owner"], "special"),
        (["--preserve", "mode,none"], "special"),
        (["--encrypt", "yes"], "on or off"),
        (["--expect", "crc32c:12"], "8 hex digits"),
        (["--checksum", "sha1"], "sha256"),
        (["--also", "host:x"], "lh://"),
        (["--memory", "1K"], "8.0 MiB"),
        (["--peer-fingerprint", "12"], "peer-fingerprint"),
    ] {
        let text = refused(&[line[0], line[1], "a", "b"]);
        assert!(text.contains(hint), "{line:?}: {text}");
    }
    assert!(refused(&["--sha256", "a", "b"]).contains("write-manifest"));
    assert!(refused(&["only-one"]).contains("SRC"));
    assert_eq!(
        args(&["--preserve", "none", "a", "b"]).preserve,
        Preserve { mode: false, times: false, special: false }
    );
}

fn check(line: &[&str]) -> Result<(), Fail> {
    let args = args(line);
    args.check(&plan(&args.operands, args.recursive)?)
}

#[test]
fn options_that_do_not_fit_the_operands_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    fs::write(at("f"), b"x").unwrap();
    fs::write(at("g"), b"x").unwrap();
    let (f, g, new) = (at("f"), at("g"), at("new"));
    let code = |line: &[&str]| check(line).map_err(|fail| fail.code);
    assert_eq!(code(&[&f, &new]), Ok(()));
    assert_eq!(code(&[&f, &g, &new]), Err(2), "a directory that is not there");
    assert_eq!(code(&[&f, &g, &format!("{new}/")]), Ok(()));
    assert_eq!(code(&["--expect", "crc32c:e3069283", &f, &new]), Ok(()));
    assert_eq!(code(&["--expect", "crc32c:e3069283", &f, &g, &format!("{new}/")]), Err(2));
    assert_eq!(code(&["--also", "lh://h/x", &f, &new]), Err(2));
    assert_eq!(code(&["--also", "lh://h/x", "lh://g/x", &new]), Ok(()));
    assert_eq!(code(&["--write-manifest", "m", "lh://g/x", "lh://h/y"]), Err(2));
    assert_eq!(code(&["--write-manifest", "m", "lh://g/x", &new]), Ok(()));
    assert_eq!(code(&["--cpus", "1023", &f, &new]), Err(2), "a CPU that is not there");
    assert_eq!(code(&["--cpus", "0", "lh://g/x", "lh://h/y"]), Err(2));
}

#[test]
fn the_client_is_the_same_one_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let id = |state: &str| client_id(Some(dir.path().join(state)));
    assert_eq!(id("a"), id("a"));
    assert_ne!(id("a").0, id("b").0);
    // Where nothing can be kept it is the machine's, and said.
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let made = id("file/below");
    assert!(made == client_id(None) && made.1.is_some_and(|note| note.contains("machine")));
}

/// A transfer that only a cancel ends.
fn endless(answer: bool) -> TransferWatch {
    let (snapshots, snapshot) = tokio::sync::watch::channel(crate::engine::spec::Snapshot::default());
    let (ended, done) = tokio::sync::oneshot::channel();
    let (cancel, mut cancelled) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let _ = cancelled.wait_for(|asked| *asked).await;
        drop(snapshots);
        if answer {
            let _ = ended.send(Report { bytes: 7, ..Report::default() });
        } else {
            std::future::pending::<()>().await;
        }
    });
    TransferWatch {
        snapshot,
        done,
        cancel: Arc::new(cancel),
        steer: Arc::new(tokio::sync::watch::channel(Default::default()).0),
    }
}

/// Signals are the process's, so both cases are one test.
#[tokio::test]
async fn a_signal_checkpoints_and_says_130() {
    let mut stop = Stop::new().unwrap();
    let me = nix::unistd::getpid();
    let mut progress = Progress::new(false);
    let term = || nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGTERM).unwrap();

    term();
    let ended = drive(endless(true), &mut progress, &mut stop).await.unwrap();
    assert!(ended.interrupted && ended.report.bytes == 7, "the checkpoint's report is kept");
    assert_eq!(exit_code(&ended.report), INTERRUPTED);

    // An engine that does not answer: the second signal ends the wait.
    let waiting = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        term();
        std::future::pending::<()>().await;
    };
    term();
    let since = std::time::Instant::now();
    let ended = tokio::select! {
        ended = drive(endless(false), &mut progress, &mut stop) => ended.unwrap(),
        () = waiting => unreachable!(),
    };
    assert!(ended.interrupted && exit_code(&ended.report) == INTERRUPTED);
    assert!(since.elapsed() < CHECKPOINT_PATIENCE / 2);
}
