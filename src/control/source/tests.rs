//! Over real sockets, with real files and a real stage command.

use super::*;
use crate::control::destination::catalog::Known;
use crate::control::http::HttpLimits;
use crate::control::settings::StageRule;
use crate::control::testing::{Reply, TestPort, ended_transfer};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A source over `root` of a port; what of it a test needs to see.
struct Port {
    port: TestPort,
    all: PathBuf,
    source: Arc<Source>,
}

/// With the catalog; `hook`: the body of a shell script that recalls, and then the sidecar rule.
fn start(hook: Option<&str>) -> Port {
    let (made, limits) = (Arc::new(OnceLock::new()), HttpLimits::default());
    let told = made.clone();
    let rule = if hook.is_some() { StageRule::Sidecar } else { StageRule::Online };
    let port = TestPort::with(
        limits,
        |app| app.stage_rule = Rule(rule),
        |app| {
            let dir = app.root.path().parent().unwrap().to_owned();
            let stages = hook.map(|hook| {
                let command = vec![script(&dir, hook).display().to_string()];
                let command = if hook.is_empty() { Vec::new() } else { command };
                let stages = Stages::open(&dir.join("stages.db"), app.root.clone(), Rule(rule), command).unwrap();
                let stages = Arc::new(stages);
                tokio::spawn(stages.clone().run());
                stages
            });
            let catalog = Arc::new(Catalog::open(&dir.join("catalog.db")).unwrap());
            let source = Arc::new(Source::new(app, Rule(rule), stages, Some(catalog)));
            assert!(told.set(source.clone()).is_ok());
            router(source)
        },
    );
    let all = port.token("all", "/", true, true);
    Port { all, source: made.get().unwrap().clone(), port }
}

fn script(dir: &std::path::Path, body: &str) -> PathBuf {
    let path = dir.join("hook.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{body}")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Counts its processes in `../runs`, then does with each line of its input as `each` says, `$lfn` and `$path` at hand.
fn hook(each: &str) -> String {
    let field = |name| format!("{name}=$(printf '%s' \"$line\" | sed 's/.*\"{name}\":\"\\([^\"]*\\)\".*/\\1/')");
    format!("echo run >> ../runs\nwhile read -r line; do\n{}\n{}\n{each}\ndone\n", field("lfn"), field("path"))
}

/// Puts what the library has to where it was.
const RECALL: &str = r#"cp "../tape/$path" "$path.tmp" && mv "$path.tmp" "$path" && rm ".$path.tape"
printf '{"lfn":"%s","state":"online"}\n' "$lfn""#;

impl Port {
    async fn get(&self, path: &str, headers: &str) -> Reply {
        self.port.ask(&self.all, &format!("GET {path}"), headers, b"").await
    }

    fn at(&self, name: &str) -> PathBuf {
        self.port.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        let path = self.at("root").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// On tape: a sidecar here, the bytes in the library.
    fn tape(&self, name: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.at("tape")).unwrap();
        std::fs::write(self.at("tape").join(name), bytes).unwrap();
        self.file(&format!(".{name}.tape"), format!("offline {}\n", bytes.len()).as_bytes());
    }

    fn knows(&self, lfn: &str, path: &str, bytes: u64, digest: Option<&str>) {
        let (lfn, path) = (lfn.parse().unwrap(), path.parse().unwrap());
        let digest = digest.map(str::to_owned);
        let known = Known { lfn, path, bytes, digest, dataset: None, block: None };
        self.source.catalog.as_ref().unwrap().enter(&[known]).unwrap();
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.at("runs")).map_or(0, |text| text.lines().count())
    }

    async fn stage(&self, lfns: &[String]) -> StageReply {
        let body = serde_json::to_vec(&StageRequest { lfns: lfns.iter().map(|l| l.parse().unwrap()).collect() });
        let answer = self.port.ask(&self.all, "POST /v1/files:stage", "", &body.unwrap()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn view(&self, stage: StageId) -> StageView {
        let answer = self.get(&format!("/v1/stages/{stage}"), "").await;
        serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }
}

/// Until it is so, 30 s at most.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so().await {
        assert!(Instant::now() < end, "in 30 s not yet: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn bytes_as_a_plain_client_expects_them() {
    let port = start(None);
    let content: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    port.file("a/b c", &content);
    port.knows("/a/b c", "/a/b c", 700_000, Some("00112233445566778899aabbccddeeff"));
    let path = "/v1/files/a/b%20c/data";
    let whole = port.get(path, "").await;
    assert_eq!((whole.status, whole.body == content), (200, true));
    assert_eq!((whole.header("content-length"), whole.header("accept-ranges")), (Some("700000"), Some("bytes")));
    assert_eq!(whole.header("repr-digest"), Some("x-longhaul-xxh3=:ABEiM0RVZneImaq7zN3u/w==:"));
    let tag = whole.header("etag").unwrap().to_owned();
    let head = port.port.ask(&port.all, &format!("HEAD {path}"), "", b"").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("700000"), 0));
    assert_eq!(head.header("etag"), Some(tag.as_str()));
    for (headers, status, body, range) in [
        ("range: bytes=10-19\r\n", 206, &content[10..20], Some("bytes 10-19/700000")),
        ("range: bytes=699990-\r\n", 206, &content[699_990..], Some("bytes 699990-699999/700000")),
        ("range: bytes=700000-\r\n", 416, &[][..], Some("bytes */700000")),
        ("if-match: \"other\"\r\n", 412, &[], None),
        (&format!("if-match: {tag}\r\nrange: bytes=0-0\r\n"), 206, &content[..1], Some("bytes 0-0/700000")),
        (&format!("if-none-match: {tag}\r\n"), 304, &[], None),
        ("range: bytes=1-2\r\nif-range: \"other\"\r\n", 200, &content, None),
    ] {
        let answer = port.get(path, headers).await;
        assert_eq!((answer.status, answer.header("content-range")), (status, range), "{headers}");
        assert!(status == 412 || answer.body == body, "{headers}");
    }
    // Another version has another tag.
    port.file("a/b c", &content[1..]);
    port.knows("/a/b c", "/a/b c", 699_999, None);
    assert_ne!(port.get(path, "range: bytes=0-0\r\n").await.header("etag"), Some(tag.as_str()));
}

#[tokio::test]
async fn unknown_gone_changed_and_no_file_are_told_apart() {
    let port = start(None);
    port.file("is/here", b"12345");
    port.knows("/was/here", "/was/here", 3, None);
    port.knows("/by/name", "/is/here", 5, Some("00"));
    port.knows("/grew", "/is/here", 4, None);
    for (path, status, class) in [
        ("/v1/files/no/where/data", 404, "not-found"),
        ("/v1/files/was/here/data", 410, "other-source"),
        ("/v1/files/grew/data", 412, "other-source"),
        ("/v1/files/is/here/data?bytes=4", 412, "other-source"),
        ("/v1/files/by/name/data?digest=11", 412, "other-source"),
        ("/v1/files/is/data", 422, "permanent"),
        ("/v1/files/is/here/x/data", 404, "not-found"),
        ("/v1/files/is%2Fhere/data", 400, "permanent"),
        ("/v1/files/../state/token/data", 400, "permanent"),
        ("/v1/files/.longhaul/x/data", 403, "denied"),
        ("/v1/files/is/here/data?what=1", 400, "permanent"),
        ("/v1/files/is/here", 404, "not-found"),
    ] {
        let answer = port.get(path, "").await;
        assert_eq!(answer.status, status, "{path}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.json()["class"], class, "{path}");
    }
    assert_eq!(port.get("/v1/files/by/name/data?bytes=5&digest=00", "").await.body, b"12345");
}

/// Token × route: nothing is told or recalled without a right to it.
#[tokio::test]
async fn every_route_asks_for_the_right_to_read_there() {
    let port = start(Some(&hook(RECALL)));
    port.file("mine/f", b"1");
    port.file("other/f", b"2");
    let mine = port.port.token("mine", "/mine", true, false);
    let writer = port.port.token("writer", "/", false, true);
    let nobody = port.at("nobody");
    std::fs::write(&nobody, format!("lht_{}", "0".repeat(64))).unwrap();
    let stage = |path: &str| format!(r#"{{"lfns":["{path}"]}}"#);
    for (token, status) in [(&nobody, [401, 401]), (&writer, [403, 403]), (&mine, [200, 403]), (&port.all, [200, 200])]
    {
        for (path, status) in ["/mine", "/other"].into_iter().zip(status) {
            for (line, body) in [
                (format!("GET /v1/files{path}/f/data"), String::new()),
                (format!("HEAD /v1/files{path}/f/data"), String::new()),
                (format!("GET /v1/list?prefix={path}"), String::new()),
                ("POST /v1/files:stage".to_owned(), stage(&format!("{path}/f"))),
            ] {
                let answer = port.port.ask(token, &line, "", body.as_bytes()).await;
                assert_eq!(answer.status, status, "{line} by {}", token.display());
            }
        }
    }
    let id = StageId::new();
    for line in [format!("GET /v1/stages/{id}"), format!("DELETE /v1/stages/{id}")] {
        assert_eq!(port.port.ask(&nobody, &line, "", b"").await.status, 401);
    }
}

#[tokio::test]
async fn a_ticket_for_one_file_and_back_pressure() {
    let port = start(None);
    port.file("a/f", b"1");
    let accept = format!("accept: {TICKET_TYPE}\r\n");
    let ticket = port.get("/v1/files/a/f/data", &accept).await;
    assert_eq!((ticket.status, ticket.header("content-type")), (200, Some(TICKET_TYPE)));
    assert_eq!(ticket.json()["data"], serde_json::json!(["127.0.0.1:8471"]));
    let Access::Read(spec) = port.port.engine.grants.lock().unwrap()[0].access.clone() else { panic!() };
    assert_eq!((spec.roots, spec.recursive), (vec![RelPath::new(b"a/f").unwrap()], false));
    assert_eq!(port.get("/v1/files/a/g/data", &accept).await.status, 404, "no ticket for what is not there");
    // As many transfers as it may.
    let running = || crate::engine::handle::TransferStatus { report: None, ..ended_transfer() };
    port.port.engine.transfers.lock().unwrap().extend([running(), running()]);
    let busy = port.get("/v1/files/a/f/data", &accept).await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("5")));
    assert_eq!(port.get("/v1/files/a/f/data", "").await.status, 200, "bytes need no transfer");
    // As many readers as may.
    let places = port.source.readers.clone().acquire_many_owned(MAX_READERS as u32).await.unwrap();
    let busy = port.get("/v1/files/a/f/data", "").await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("5")));
    drop(places);
    assert_eq!(port.get("/v1/files/a/f/data", "").await.status, 200);
}

/// Whoever reads on while the file changes gets no whole answer of two versions.
#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let port = start(None);
    let bytes = vec![7; 64 << 20];
    port.file("f", &bytes);
    let mut stream = tokio::net::TcpStream::connect(port.port.address).await.unwrap();
    let token = std::fs::read_to_string(&port.all).unwrap();
    let head = format!("GET /v1/files/f/data HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = vec![0; 1 << 20];
    stream.read_exact(&mut first).await.unwrap();
    // More than sockets and pieces hold is still to be read.
    port.file("f", &vec![8; 64 << 20]);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(first.len() + rest.len() < bytes.len(), "{} bytes came of a file that changed", first.len() + rest.len());
}

#[tokio::test]
async fn on_tape_means_204_until_the_hook_has_recalled_it() {
    let port = start(Some(&hook(RECALL)));
    port.tape("f", b"from tape");
    let head = port.port.ask(&port.all, "HEAD /v1/files/f/data", "", b"").await;
    assert_eq!((head.status, head.header(STAGE_STATE)), (204, Some("offline")));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(port.source.stages.as_ref().unwrap().take().unwrap().is_empty(), "a look has begun a recall");
    let first = port.get("/v1/files/f/data", "").await;
    assert_eq!((first.status, first.header(STAGE_STATE)), (204, Some("queued")));
    assert!(first.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1 && first.body.is_empty());
    let stage: StageId = first.header(STAGE_ID).unwrap().parse().unwrap();
    let again = port.get("/v1/files/f/data", &format!("accept: {TICKET_TYPE}\r\n")).await;
    assert_eq!((again.status, again.header(STAGE_ID)), (204, Some(stage.to_string().as_str())));
    assert!(port.port.engine.grants.lock().unwrap().is_empty());
    // The same question as a long-poll.
    let there = port.get("/v1/files/f/data?wait=20s", "").await;
    assert_eq!((there.status, there.body.as_slice()), (200, &b"from tape"[..]));
    until("the stage is over", async || port.view(stage).await.online == 1).await;
    assert_eq!(port.runs(), 1);
}

#[tokio::test]
async fn no_ticket_opens_what_is_on_tape() {
    let port = start(Some(&hook(RECALL)));
    port.tape("f", b"x");
    port.file("f", b"x");
    let body = br#"{"direction":"read","paths":["/f"]}"#;
    let answer = port.port.ask(&port.all, "POST /v1/tickets", "", body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(port.runs(), 0);
}

/// 2,500 files in bulk and one by one, some of them twice: three processes, one recall each.
#[tokio::test]
async fn recalls_of_all_clients_are_merged_into_full_batches() {
    let port = start(Some(&hook(r#"echo "$lfn" >> ../lfns; printf '{"lfn":"%s","state":"online"}\n' "$lfn""#)));
    let names: Vec<String> = (0..2500).map(|n| format!("f{n:04}")).collect();
    names.iter().for_each(|name| port.tape(name, b"x"));
    let lfns: Vec<String> = names.iter().map(|name| format!("/{name}")).collect();
    let mut stages = Vec::new();
    for part in lfns.chunks(700) {
        let told = port.stage(part).await;
        assert_eq!((told.state.as_str(), told.files.len()), ("recalling", part.len()));
        assert!(told.files.iter().all(|file| file.state == "queued"));
        stages.push(told.stage.unwrap());
    }
    let again = port.stage(&lfns[..700]).await;
    assert_eq!(again.stage, Some(stages[0]), "asked again it is the same stage");
    assert_eq!(port.get("/v1/files/f0001/data", "").await.status, 204);
    until("all are recalled", async || {
        let mut online = 0;
        for stage in &stages {
            online += port.view(*stage).await.online;
        }
        online == 2500
    })
    .await;
    assert_eq!(port.runs(), 3);
    let told = std::fs::read_to_string(port.at("lfns")).unwrap();
    let mut told: Vec<&str> = told.lines().collect();
    told.sort_unstable();
    assert_eq!(told, lfns.iter().map(String::as_str).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn a_recall_that_fails_is_said_and_rests_before_it_is_tried_again() {
    let port = start(Some(&hook(r#"printf '{"lfn":"%s","state":"failed","reason":"bad tape"}\n' "$lfn""#)));
    port.tape("f", b"x");
    let stage = port.stage(&["/f".to_owned()]).await.stage.unwrap();
    until("it has failed", async || port.view(stage).await.failed == 1).await;
    assert_eq!(port.view(stage).await.reason.as_deref(), Some("bad tape"));
    let again = port.stage(&["/f".to_owned(), "/g".to_owned()]).await;
    assert_eq!(again.files.iter().map(|f| f.state.as_str()).collect::<Vec<_>>(), ["failed", "missing"]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(port.runs(), 1, "it has to rest");
}

/// A library that only takes orders: one process, and the directory says when it is there.
#[tokio::test]
async fn a_hook_may_only_pass_on_what_is_wanted() {
    let port = start(Some(&hook(r#"printf '{"lfn":"%s","state":"recalling"}\n' "$lfn""#)));
    port.tape("f", b"later");
    let stage = port.stage(&["/f".to_owned()]).await.stage.unwrap();
    until("it is ordered", async || port.runs() == 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(port.view(stage).await, StageView { recalling: 1, ..StageView::default() });
    assert_eq!(port.stage(&["/f".to_owned()]).await.stage, Some(stage));
    port.file("f", b"later");
    std::fs::remove_file(port.at("root/.f.tape")).unwrap();
    assert_eq!(port.view(stage).await, StageView { online: 1, ..StageView::default() });
    assert_eq!((port.get("/v1/files/f/data", "").await.status, port.runs()), (200, 1));
}

#[tokio::test]
async fn a_hook_that_cannot_run_or_dies_is_said() {
    for (body, word) in [("echo broken >&2; exit 3", "broken"), ("exit 0", "said nothing")] {
        let port = start(Some(body));
        port.tape("f", b"x");
        let stage = port.stage(&["/f".to_owned()]).await.stage.unwrap();
        until("it has failed", async || port.view(stage).await.failed == 1).await;
        let reason = port.view(stage).await.reason.unwrap();
        assert!(reason.contains(word), "{reason}");
    }
}

/// What was asked for outlives the agent; what a process had is asked of the next one again.
#[tokio::test]
async fn recalls_survive_a_restart() {
    // The first one has the file for as long as the test lasts, and no longer: then its folder goes.
    let waits = "n=0; while [ -e ../runs ] && [ $((n += 1)) -lt 600 ]; do sleep 0.1; done";
    let port = start(Some(&hook(&format!("if [ -e ../again ]; then\n{RECALL}\nelse {waits}\nfi"))));
    port.tape("f", b"x");
    port.tape("g", b"x");
    let stage = port.stage(&["/f".to_owned()]).await.stage.unwrap();
    until("the hook has it", async || port.view(stage).await.recalling == 1).await;
    port.stage(&["/g".to_owned()]).await;
    // As a process that was killed leaves it: another one opens the same file. (The first still lives in this test and may
    // take from it as well.)
    std::fs::write(port.at("again"), "").unwrap();
    let command = vec![port.at("hook.sh").display().to_string()];
    let root = port.source.app.root.clone();
    let after = Stages::open(&port.at("stages.db"), root, Rule(StageRule::Sidecar), command).unwrap();
    let after = Arc::new(after);
    tokio::spawn(after.clone().run());
    until("both are there", async || port.at("root/f").exists() && port.at("root/g").exists()).await;
    until("and it is known", async || after.view(stage).unwrap().unwrap().online == 1).await;
}

#[tokio::test]
async fn nobody_waits_any_more_means_no_recall() {
    let port = start(Some(&hook(RECALL)));
    port.tape("f", b"x");
    port.tape("g", b"x");
    let (both, one) = (["/f".to_owned(), "/g".to_owned()], ["/g".to_owned()]);
    let (first, second) = (port.stage(&both).await.stage.unwrap(), port.stage(&one).await.stage.unwrap());
    assert_eq!(first, second, "it is on its way in the first");
    let answer = port.port.ask(&port.all, &format!("DELETE /v1/stages/{first}"), "", b"").await;
    assert_eq!(answer.status, 204);
    assert_eq!(port.get(&format!("/v1/stages/{first}"), "").await.status, 404);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(port.runs(), 0);
}

/// Where no command is configured somebody else recalls, and the directory alone says so.
#[tokio::test]
async fn without_a_command_the_directory_rule_alone_counts() {
    let port = start(Some(""));
    port.file(".f.tape", b"offline 5");
    port.file(".g.tape", b"recalling 5");
    let told = port.stage(&["/f".to_owned(), "/g".to_owned()]).await;
    let stage = told.stage.unwrap();
    assert_eq!(port.view(stage).await, StageView { queued: 2, ..StageView::default() });
    port.file("f", b"12345");
    port.file(".f.tape", b"online 5");
    assert_eq!(port.view(stage).await, StageView { queued: 1, online: 1, ..StageView::default() });
    assert_eq!(port.get("/v1/files/f/data", "").await.body, b"12345");
}

#[tokio::test]
async fn lists_in_pages_with_what_is_on_tape() {
    let port = start(Some(&hook(RECALL)));
    for (name, bytes) in [("p/a", "1"), ("p/b/c", "22"), ("p/b/d", "333"), ("p/z", "4"), ("q", "5"), ("pp", "6")] {
        port.file(name, bytes.as_bytes());
    }
    port.file("p/.t.tape", b"offline 777");
    port.file(".longhaul/x", b"journal");
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = port.get(&format!("/v1/list?prefix=/p&limit=2{cursor}"), "").await.json();
        let items = page["items"].as_array().unwrap().clone();
        assert!(items.len() <= 2);
        all.extend(items);
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let shown: Vec<(&str, u64, bool)> = all
        .iter()
        .map(|f| (f["lfn"].as_str().unwrap(), f["bytes"].as_u64().unwrap(), f["online"].as_bool().unwrap()))
        .collect();
    let want = [("/p/a", 1, true), ("/p/b/c", 2, true), ("/p/b/d", 3, true), ("/p/t", 777, false), ("/p/z", 1, true)];
    assert_eq!(shown, want);
    assert_eq!(port.get("/v1/list?prefix=/p/a", "").await.json()["items"][0]["lfn"], "/p/a");
    assert_eq!(port.get("/v1/list?prefix=/none", "").await.status, 404);
    assert_eq!(port.get("/v1/list?prefix=/", "").await.json()["items"].as_array().unwrap().len(), 7);
    assert_eq!(port.runs(), 0, "a list recalls nothing");
}
