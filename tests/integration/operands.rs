//! Which SRC becomes which DST.

use crate::support::tree::{Compare, assert_same};
use crate::support::{Sandbox, left_over};
use std::fs;

/// A tree `src` with one file, and one file `one`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("src/in", b"in");
    sandbox.write("one", b"one");
    sandbox
}

#[test]
fn with_and_without_a_slash_there_or_not() {
    for there in [false, true] {
        let sandbox = sandbox();
        if there {
            sandbox.dir("a");
            sandbox.dir("b");
        }
        sandbox.cp(&["-r", "src", "a"]).expect(0);
        sandbox.cp(&["-r", "src", "b/"]).expect(0);
        assert_same(&sandbox.at("src"), &sandbox.at("a"), Compare::DEFAULT);
        assert_same(&sandbox.at("src"), &sandbox.at("b/src"), Compare::DEFAULT);
        assert_eq!(fs::read_dir(sandbox.at("b")).unwrap().count(), 1);
    }
}

#[test]
fn a_file_becomes_a_name_or_goes_below() {
    let sandbox = sandbox();
    sandbox.cp(&["one", "two"]).expect(0);
    sandbox.cp(&["one", "dir/"]).expect(0);
    sandbox.cp(&["one", "dir/"]).expect(0);
    assert_same(&sandbox.at("one"), &sandbox.at("two"), Compare::DEFAULT);
    assert_same(&sandbox.at("one"), &sandbox.at("dir/one"), Compare::DEFAULT);
    sandbox.cp(&["one", "dir"]).says(7, &["is a directory"]);
    sandbox.cp(&["one", "no/such/dir"]).says(4, &["does not exist"]);
    assert!(!sandbox.at("no").exists());
}

#[test]
fn to_and_from_an_agent_the_same_rules_hold() {
    let sandbox = sandbox();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    let cp = |from: &str, to: &str| sandbox.cp(&["-r", "--token-file", &token, from, to]);
    cp("src", &agent.url("a")).expect(0);
    cp("src", &agent.url("b/")).expect(0);
    cp("one", &agent.url("c")).expect(0);
    assert_same(&sandbox.at("src"), &sandbox.at("far/a"), Compare::DEFAULT);
    assert_same(&sandbox.at("src"), &sandbox.at("far/b/src"), Compare::DEFAULT);
    assert_same(&sandbox.at("one"), &sandbox.at("far/c"), Compare::DEFAULT);
    cp(&agent.url("b/src"), "x").expect(0);
    cp(&agent.url("b/src"), "y/").expect(0);
    cp(&agent.url("b/src/"), "z/").expect(0);
    assert_same(&sandbox.at("src"), &sandbox.at("x"), Compare::DEFAULT);
    assert_same(&sandbox.at("src"), &sandbox.at("y/src"), Compare::DEFAULT);
    assert_same(&sandbox.at("src"), &sandbox.at("z/src"), Compare::DEFAULT);
    cp(&agent.url("nothing"), "n").says(4, &["nothing"]);
    assert!(!sandbox.at("n").exists());
    // The whole root.
    cp(&agent.url(""), "whole").expect(0);
    assert_same(&sandbox.at("far/b"), &sandbox.at("whole/b"), Compare::DEFAULT);
}

#[test]
fn several_sources_go_below() {
    let sandbox = sandbox();
    sandbox.write("other/in", b"other");
    sandbox.cp(&["-r", "src", "one", "other", "dst/"]).expect(0);
    for name in ["src", "one", "other"] {
        assert_same(&sandbox.at(name), &sandbox.at("dst").join(name), Compare::DEFAULT);
    }
    sandbox.cp(&["-r", "src", "one", "nodir"]).says(2, &["slash"]);
    sandbox.write("b/src/in", b"another");
    sandbox.cp(&["-r", "src", "b/src", "dst/"]).says(2, &["two sources are called src"]);
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    sandbox.cp(&["-r", "--token-file", &token, "src", "one", &agent.url("up/")]).expect(0);
    assert_same(&sandbox.at("src"), &sandbox.at("far/up/src"), Compare::DEFAULT);
    sandbox.cp(&["-r", "--token-file", &token, &agent.url("up/src"), &agent.url("up/one"), "down/"]).expect(0);
    assert_same(&sandbox.at("far/up/one"), &sandbox.at("down/one"), Compare::DEFAULT);
}

#[test]
fn relative_paths_and_symlinked_operands() {
    let sandbox = sandbox();
    sandbox.dir("sub");
    let mut command = sandbox.command(&[], &["cp", "-r", "--json", "../src", "./out"]);
    command.current_dir(sandbox.at("sub"));
    sandbox.start(command).wait(crate::support::SOON).expect(0);
    assert_same(&sandbox.at("src"), &sandbox.at("sub/out"), Compare::DEFAULT);
    let mut command = sandbox.command(&[], &["cp", "-r", "--json", "../one", "."]);
    command.current_dir(sandbox.at("sub"));
    sandbox.start(command).wait(crate::support::SOON).expect(0);
    assert_same(&sandbox.at("one"), &sandbox.at("sub/one"), Compare::DEFAULT);
    // A SRC that is a symlink is what it leads to, under its own name.
    std::os::unix::fs::symlink("src", sandbox.at("link")).unwrap();
    sandbox.cp(&["-r", "link", "below/"]).expect(0);
    assert_same(&sandbox.at("src"), &sandbox.at("below/link"), Compare::DEFAULT);
    sandbox.cp(&["src", "x"]).says(2, &["-r"]);
    sandbox.cp(&["-r", "missing", "x"]).says(4, &["missing"]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let sandbox = sandbox();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    sandbox.write("far/there/in", b"in");
    let before = crate::support::tree::list(&agent.root);
    for (from, to) in [("src", "dst".to_owned()), ("src", agent.url("dst")), (&agent.url("there"), "dst".to_owned())] {
        let outcome = sandbox.cp(&["-r", "--dry-run", "--token-file", &token, from, &to]).expect(0);
        assert_eq!(outcome.text("verdict"), "PLANNED");
        assert_eq!((outcome.number("files"), outcome.number("received_bytes")), (0, 0));
    }
    assert!(!sandbox.at("dst").exists());
    assert_eq!(crate::support::tree::list(&agent.root), before);
    // It finds conflicts, too.
    sandbox.write("dst/in", b"something else");
    sandbox.cp(&["-r", "--dry-run", "src", "dst"]).says(3, &["dst/in"]);
    assert_eq!(left_over(sandbox.path()).len(), 0);
}

/// Through whatever names, a copy onto itself touches nothing.
#[test]
fn onto_itself() {
    let sandbox = sandbox();
    let agent = sandbox.agent_at("self", &sandbox.at(""), &[], &[]);
    let token = agent.token_file();
    std::os::unix::fs::symlink("src", sandbox.at("alias")).unwrap();
    fs::hard_link(sandbox.at("one"), sandbox.at("hard")).unwrap();
    let same = |from: &str, to: &str| {
        let outcome = sandbox.cp(&["-r", "--if-exists", "replace", "--token-file", &token, from, to]);
        assert!(
            [2, 7].contains(&outcome.code) && outcome.err.contains("same") || outcome.out.contains("same"),
            "{outcome:?}"
        );
        assert_eq!(fs::read(sandbox.at("src/in")).unwrap(), b"in");
        assert_eq!(fs::read(sandbox.at("one")).unwrap(), b"one");
    };
    same("src", "src");
    same("one", "hard");
    same("alias", "src");
    same("one", &agent.url("hard"));
    same(&agent.url("one"), "hard");
    same("src", &agent.url("src"));
    same(&agent.url("src"), "src");
    same(&agent.url("alias"), "src");
    same(&agent.url("src"), &agent.url("src"));
    sandbox.cp(&["-r", "src", "src/inside"]).says(2, &["into itself"]);
    sandbox.cp(&["-r", "--token-file", &token, "src", &agent.url("src/inside")]).expect(7);
}

/// A file of the tree may be one with a file at the destination, too.
#[test]
fn a_file_inside_onto_itself() {
    let sandbox = sandbox();
    sandbox.dir("dst");
    fs::hard_link(sandbox.at("src/in"), sandbox.at("dst/in")).unwrap();
    let outcome = sandbox.cp(&["-r", "--if-exists", "replace", "src", "dst"]);
    assert_eq!(fs::read(sandbox.at("src/in")).unwrap(), b"in", "{}", outcome.out);
    assert_eq!(fs::read(sandbox.at("dst/in")).unwrap(), b"in");
}

#[test]
fn onto_itself_through_a_bind_mount() {
    if !crate::support::root_or_skip("to bind a mount") {
        return;
    }
    let sandbox = sandbox();
    sandbox.dir("bound");
    // The mount lives in a namespace of its own and goes with it.
    let script = "mount --make-rprivate / && mount --bind src bound && exec \"$0\" \"$@\"";
    let wrap = ["unshare", "--mount", "sh", "-c", script];
    let command = sandbox.command(&wrap, &["cp", "-r", "--json", "--if-exists", "replace", "src", "bound"]);
    sandbox.start(command).wait(crate::support::SOON).says(2, &["same"]);
    assert_eq!(fs::read(sandbox.at("src/in")).unwrap(), b"in");
    let command = sandbox.command(&wrap, &["cp", "-r", "--json", "src", "bound/inside"]);
    sandbox.start(command).wait(crate::support::SOON).says(2, &["into itself"]);
}
