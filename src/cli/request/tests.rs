//! The command, from its arguments to the store of a main behind a real port.

use super::words;
use crate::control::access::Role;
use crate::control::model::name::RequestId;
use crate::control::model::page::PageQuery;
use crate::control::model::request::*;
use crate::control::model::states::{ItemEvent, RequestState};
use crate::control::testing_main::TestMain;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

struct Cli {
    main: TestMain,
    token: std::path::PathBuf,
}

impl Cli {
    fn start() -> Self {
        let main = TestMain::start();
        main.agent("s1");
        main.agent("d1");
        main.files("s1", "/raw", 3);
        let roles = [Role::Submitter, Role::Approver, Role::Operator];
        let token = main.token_file("ada", &roles);
        Self { main, token }
    }

    fn with(&self, token: &Path, args: &[&str]) -> u8 {
        let main = format!("lh://{}", self.main.address);
        let peers = self.main.dir.path().join("no-known-peers");
        let all = [&["longhaul"], args, &["--main", &main]].concat();
        let paths = ["--token-file".into(), token.into(), "--known-peers".into(), peers.into()];
        crate::cli::run(all.into_iter().map(OsString::from).chain(paths))
    }

    fn run(&self, args: &[&str]) -> u8 {
        self.with(&self.token, args)
    }

    fn requests(&self) -> Vec<RequestView> {
        self.main.run(self.main.store.requests(RequestFilter::default(), PageQuery::default())).unwrap().items
    }

    fn create(&self, args: &[&str]) -> RequestView {
        let before = self.requests().len();
        assert_eq!(self.run(&[&["request", "create"], args].concat()), 0, "{args:?}");
        let now = self.requests();
        assert_eq!(now.len(), before + 1);
        now[0].clone()
    }

    fn wait(&self, id: RequestId, state: RequestState) -> RequestView {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let request = self.main.run(self.main.store.request(id)).unwrap();
            if request.state == state {
                return request;
            }
            assert!(Instant::now() < until, "{id} is {}: {:?}", request.state, request.reason);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn everything_that_can_be_asked_for_arrives_as_it_was_typed() {
    let cli = Cli::start();
    let line = "--block /raw#1 --from s1 --to d1 --path /in --model push --priority 7 --deadline 3h --not-before 1h --max-rate 2Gbit \
                --if-exists replace --verify wire --stage-timeout 2d --tries 9 --label run=7 --label who=ada --comment why";
    let made = cli.create(&line.split_whitespace().collect::<Vec<_>>());
    let spec = &made.spec;
    assert_eq!(spec.select, Selection::Block("/raw#1".parse().unwrap()));
    assert_eq!(spec.source, SourceChoice::Agents(vec!["s1".parse().unwrap()]));
    assert_eq!((spec.destinations[0].as_str(), spec.path.as_ref().unwrap().as_str()), ("d1", "/in"));
    assert_eq!((spec.model, spec.priority, spec.max_rate, spec.tries), (Model::Push, 7, Some(2_000_000_000), 9));
    assert_eq!(serde_json::to_value(spec).unwrap()["if_exists"], "replace");
    assert_eq!(serde_json::to_value(spec).unwrap()["verify"], "wire");
    assert_eq!(spec.stage_timeout_secs, 2 * 86_400);
    let hours = |t: crate::control::model::time::Time| (t.0 - made.created.0 + 60_000) / 3_600_000;
    assert_eq!((hours(spec.deadline.unwrap()), hours(spec.not_before.unwrap())), (3, 1));
    assert_eq!(spec.labels.iter().map(|(k, v)| format!("{k}{v}")).collect::<Vec<_>>(), ["run7", "whoada"]);
    assert_eq!((spec.comment.as_deref(), made.owner.as_str()), (Some("why"), "ada"));

    let made = cli.create(&["--prefix", "/raw", "--from", "s1", "--to", "d1"]);
    assert_eq!(made.spec.select, Selection::Prefix("/raw".parse().unwrap()));
    let made = cli.create(&["--file", "/raw/0", "--file", "/raw/2", "--to", "d1"]);
    assert_eq!(made.spec.select, Selection::Files(vec!["/raw/0".parse().unwrap(), "/raw/2".parse().unwrap()]));
    assert_eq!((made.spec.tries, made.spec.priority), (DEFAULT_TRIES, 3));
    // The same key is the same request; only asking makes none.
    assert_eq!(cli.run(&["request", "create", "--dataset", "/raw", "--to", "d1", "--key", "k"]), 0);
    let before = cli.requests().len();
    assert_eq!(cli.run(&["request", "create", "--dataset", "/raw", "--to", "d1", "--key", "k"]), 0);
    assert_eq!(cli.run(&["request", "create", "--dataset", "/raw", "--to", "d1", "--preflight"]), 0);
    assert_eq!(cli.requests().len(), before);
}

#[test]
fn a_manifest_is_read_line_by_line_and_resolves_the_request() {
    let cli = Cli::start();
    let list = cli.main.dir.path().join("list");
    let lines: String =
        (0..5000).map(|n| format!("{{\"lfn\": \"/m/{n}\", \"bytes\": {n}, \"path\": \"/as/{n}\"}}\n")).collect();
    std::fs::write(&list, format!("/raw/0\n\n{lines}")).unwrap();
    let list = list.to_str().unwrap();
    let made = cli.create(&["--manifest", list, "--to", "d1", "--from", "s1"]);
    let made = cli.wait(made.id, RequestState::PendingApproval);
    assert_eq!((made.counters.files, made.counters.bytes), (5001, 4999 * 5000 / 2));
    let items = cli.main.run(cli.main.store.items(made.id, None, PageQuery::default())).unwrap().items;
    assert_eq!((items[0].lfn.as_str(), items[1].path.as_str()), ("/raw/0", "/as/0"));

    // A bad line is told before anything is asked for.
    let before = cli.requests().len();
    for (text, code) in [("/raw/0\nraw/1\n", 7), ("\n", 1), ("{\"lfn\": \"/a\", \"size\": 1}\n", 7)] {
        std::fs::write(list, text).unwrap();
        assert_eq!(cli.run(&["request", "create", "--manifest", list, "--to", "d1"]), code, "{text}");
    }
    assert_eq!(cli.run(&["request", "create", "--manifest", "no-such-list", "--to", "d1"]), 4);
    assert_eq!(cli.requests().len(), before);
    // A request that has its files takes no others.
    std::fs::write(list, "/raw/1\n").unwrap();
    assert_eq!(cli.run(&["request", "upload", &made.id.to_string(), list]), 7);
}

#[test]
fn approval_steering_and_the_end() {
    let cli = Cli::start();
    let made = cli.create(&["--dataset", "/raw", "--to", "d1", "--comment", "for the test"]);
    let id = made.id.to_string();
    let resolved = cli.wait(made.id, RequestState::PendingApproval);
    // Nobody without the role, and nothing but what was seen.
    let looks = cli.main.token_file("looks", &[Role::Viewer]);
    assert_eq!(cli.with(&looks, &["request", "approve", &id]), 10);
    assert_eq!(cli.run(&["request", "approve", &id, "--digest", &"0".repeat(64)]), 7);
    assert_eq!(cli.wait(made.id, RequestState::PendingApproval).version, resolved.version);
    assert_eq!(cli.run(&["request", "watch", &id, "--timeout", "1s"]), 11);
    assert_eq!(cli.run(&["request", "approve", &id, "--digest", &resolved.digest.unwrap(), "--comment", "yes"]), 0);
    let active = cli.wait(made.id, RequestState::Active);
    assert_eq!((active.decisions[0].by.as_str(), active.decisions[0].comment.as_deref()), ("ada", Some("yes")));

    assert_eq!(cli.run(&["request", "pause", &id]), 0);
    assert!(cli.wait(made.id, RequestState::Active).paused);
    assert_eq!(cli.run(&["request", "resume", &id]), 0);
    assert_eq!(cli.run(&["request", "change", &id, "--priority", "9", "--label", "a=b"]), 0);
    let changed = cli.wait(made.id, RequestState::Active);
    assert_eq!((changed.spec.priority, changed.spec.labels["a"].as_str(), changed.paused), (9, "b", false));
    assert_eq!(cli.run(&["request", "change", &id]), 2);

    let items = cli.main.claim("d1", 3);
    cli.main.report("d1", &items[..2], ItemEvent::Complete);
    cli.main.report("d1", &items[2..], ItemEvent::Fail);
    assert_eq!(cli.run(&["request", "watch", &id]), 3);
    assert_eq!(cli.run(&["request", "items", &id, "--state", "failed"]), 0);
    let failed = items[2].item.to_string();
    assert_eq!(cli.run(&["request", "attempts", &failed, "--json"]), 0);
    let tries = cli.main.run(cli.main.store.attempts(items[2].item)).unwrap();
    assert!(words::attempts(&tries).contains("permanent"), "{}", words::attempts(&tries));
    assert_eq!(cli.run(&["request", "retry-failed", &id]), 0);
    let again = cli.main.claim("d1", 1);
    assert_eq!(again[0].item, items[2].item);
    cli.main.report("d1", &again, ItemEvent::Complete);
    assert_eq!(cli.run(&["request", "watch", &id, "--json"]), 0);
    let ended = cli.wait(made.id, RequestState::Succeeded);
    let text = words::request(&ended);
    assert!(text.contains("3 in all: 3 done") && text.contains("by ada at") && text.contains("for the test"), "{text}");
    assert_eq!(cli.run(&["request", "delete", &id]), 0);
    assert_eq!(cli.run(&["request", "show", &id]), 4);

    let ids: Vec<_> = (0..2).map(|_| cli.create(&["--dataset", "/raw", "--to", "d1"]).id).collect();
    assert_eq!(cli.run(&["request", "cancel", &ids[0].to_string(), &ids[1].to_string()]), 0);
    assert_eq!(cli.run(&["request", "watch", &ids[1].to_string()]), 130);
    let no = cli.create(&["--dataset", "/raw", "--to", "d1"]).id;
    cli.wait(no, RequestState::PendingApproval);
    assert_eq!(cli.run(&["request", "reject", &no.to_string(), "--comment", "no"]), 0);
    assert_eq!(cli.run(&["request", "watch", &no.to_string()]), 10);
    assert_eq!(cli.run(&["request", "list", "--state", "rejected", "--json"]), 0);
    assert_eq!(words::requests(&cli.requests()).lines().count(), 4);
}

#[test]
fn rules_decide_who_is_asked() {
    let cli = Cli::start();
    let file = cli.main.dir.path().join("rules");
    let rules = r#"[{"name": "small", "dataset_prefix": "/raw", "max_bytes": 30, "then": "automatic"}, {"name": "rest", "then": "second_person"}]"#;
    std::fs::write(&file, rules).unwrap();
    assert_eq!(cli.run(&["request", "rules", "--set", file.to_str().unwrap()]), 0);
    assert_eq!(cli.run(&["request", "rules"]), 0);
    let kept = cli.main.run(cli.main.store.approval_rules()).unwrap();
    assert_eq!(words::rules(&kept).lines().nth(1).unwrap().split_whitespace().last(), Some("automatic"));
    let small = cli.create(&["--dataset", "/raw", "--to", "d1"]);
    assert_eq!(cli.wait(small.id, RequestState::Active).decisions[0].by, "policy:small");
    cli.main.files("s1", "/other", 1);
    let other = cli.create(&["--dataset", "/other", "--to", "d1"]).id;
    cli.wait(other, RequestState::PendingApproval);
    assert_eq!(cli.run(&["request", "approve", &other.to_string()]), 10, "ada asked for it herself");
    let bob = cli.main.token_file("bob", &[Role::Approver]);
    assert_eq!(cli.with(&bob, &["request", "approve", &other.to_string()]), 0);
    std::fs::write(&file, "[{\"name\": \"x\", \"then\": \"never\"}]").unwrap();
    assert_eq!(cli.run(&["request", "rules", "--set", file.to_str().unwrap()]), 7);
    assert_eq!(cli.with(&bob, &["request", "rules", "--set", file.to_str().unwrap()]), 7);
    std::fs::write(&file, "[]").unwrap();
    assert_eq!(cli.with(&bob, &["request", "rules", "--set", file.to_str().unwrap()]), 10);
}

#[test]
fn mistakes_have_their_codes() {
    let cli = Cli::start();
    let id = RequestId::new().to_string();
    for (args, code) in [
        (&["request", "show", "req_1"][..], 2),
        (&["request", "show", &id], 4),
        (&["request", "create", "--to", "d1"], 2),
        (&["request", "create", "--dataset", "/raw", "--block", "/raw#1", "--to", "d1"], 2),
        (&["request", "create", "--prefix", "/raw", "--to", "d1"], 2),
        (&["request", "create", "--dataset", "/raw"], 2),
        (&["request", "create", "--dataset", "/raw", "--to", "d9"], 7),
        (&["request", "create", "--dataset", "/raw", "--to", "d1", "--label", "=x"], 2),
        (&["request", "list", "--state", "odd"], 2),
    ] {
        assert_eq!(cli.run(args), code, "{args:?}");
    }
    let none = cli.main.dir.path().join("none");
    assert_eq!(cli.with(&none, &["request", "list"]), 10);
    std::fs::write(&none, "lht_x").unwrap();
    assert_eq!(cli.with(&none, &["request", "list"]), 10, "a token file that others may read");
}

#[test]
fn the_catalog_is_filled_and_read() {
    let cli = Cli::start();
    let add = [
        "catalog",
        "add",
        "/new/a",
        "--agent",
        "s1",
        "--bytes",
        "4KiB",
        "--dataset",
        "/new",
        "--block",
        "/new#1",
        "--offline",
    ];
    assert_eq!(cli.run(&add), 0);
    let file = cli.main.run(cli.main.store.file("/new/a".parse().unwrap())).unwrap();
    assert_eq!((file.bytes, file.replicas[0].agent.as_str()), (4096, "s1"));
    assert_eq!(serde_json::to_value(&file).unwrap()["replicas"][0]["locality"], "offline");
    let list = cli.main.dir.path().join("records");
    let lines: String =
        (0..2500).map(|n| format!("{{\"lfn\": \"/l/{n}\", \"bytes\": 1, \"agent\": \"d1\"}}\n")).collect();
    std::fs::write(&list, lines).unwrap();
    assert_eq!(cli.run(&["catalog", "add", "--records", list.to_str().unwrap()]), 0);
    assert!(cli.main.run(cli.main.store.file("/l/2499".parse().unwrap())).is_ok());
    for args in [
        &["catalog", "datasets"][..],
        &["catalog", "blocks", "/new"],
        &["catalog", "files", "--dataset", "/new", "--all"],
        &["catalog", "files", "--prefix", "/l", "--limit", "3", "--json"],
        &["catalog", "file", "/new/a"],
        &["catalog", "remove", "/l/1", "--agent", "d1"],
    ] {
        assert_eq!(cli.run(args), 0, "{args:?}");
    }
    assert!(cli.main.run(cli.main.store.file("/l/1".parse().unwrap())).unwrap().replicas.is_empty());
    assert_eq!(cli.run(&["catalog", "file", "/none"]), 4);
    assert_eq!(cli.run(&["catalog", "add", "/new/b", "--agent", "s1"]), 2);
    // Another size of the same file is another file.
    assert_eq!(cli.run(&["catalog", "add", "/new/a", "--agent", "d1", "--bytes", "1"]), 7);
}
