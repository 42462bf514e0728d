//! Files sent from the page cache (`--io splice`): the same bytes, said in the report, and never a version that never was.

use crate::support::tree::{Compare, assert_same};
use crate::support::{SOON, Sandbox, left_over, noise};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn spliced_files_arrive_whole_and_encryption_says_why_not() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &["--encrypt", "off"]);
    let token = agent.token_file();
    sandbox.write("src/big", &noise((9 << 20) + 4321, 1));
    sandbox.write("src/block", &noise(256 << 10, 2));
    sandbox.write("src/small", b"in a pack");
    let holes = sandbox.write("src/holes", &noise(300_000, 3));
    std::fs::OpenOptions::new().write(true).open(holes).unwrap().write_all_at(b"end", 6 << 20).unwrap();
    for engine in ["auto", "epoll"] {
        let to = agent.url(engine);
        let how = ["-r", "--token-file", &token, "--io", "splice", "--engine", engine];
        let push = sandbox.cp(&[&how[..], &["--encrypt", "off", "--streams", "2", "src", &to]].concat()).expect(0);
        assert_same(&sandbox.at("src"), &sandbox.at(&format!("far/{engine}")), Compare::DEFAULT);
        let source = push.json["io"]["source"].as_str().unwrap_or_default();
        assert!(source.contains("sent from there"), "{}", push.out);
        let back = format!("back-{engine}");
        let sealed = sandbox.cp(&[&how[..], &[&to, &back]].concat()).expect(0);
        assert_same(&sandbox.at("src"), &sandbox.at(&back), Compare::DEFAULT);
        assert!(sealed.notes().contains("--io splice needs --encrypt off"), "{}", sealed.notes());
        assert!(!sealed.json["io"].to_string().contains("sent from there"), "{}", sealed.out);
    }
}

#[test]
fn a_file_that_changes_while_it_is_spliced_is_not_published() {
    const LEN: u64 = 24 << 20;
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &["--encrypt", "off"]);
    let token = agent.token_file();
    let path = sandbox.write("far/file", &noise(LEN as usize, 5));
    let url = agent.url("file");
    let args = ["--token-file", &token, "--io", "splice", "--encrypt", "off", "--rate", "16MiB", &url, "copy"];
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            for round in 0u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                file.write_all_at(&round.to_le_bytes(), round.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (LEN - 8)).unwrap();
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        let running = sandbox.start_cp(&args);
        // Whatever becomes of it, the writer must end, or the scope never does.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| running.wait(SOON)));
        over.store(true, Ordering::Relaxed);
        outcome
    });
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_ne!(outcome.code, 0, "{}", outcome.out);
    assert!(!sandbox.at("copy").exists(), "a version that never was is published: {}", outcome.out);
    assert!(outcome.out.contains("changed"), "{}", outcome.out);
    sandbox.cp(&args).expect(0);
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(sandbox.at("copy")).unwrap());
    assert!(left_over(&sandbox.at(".")).is_empty());
}
