//! The page as browsers meet it, friendly and led astray, over a real port.

use super::session::{CSRF_HEADER, IDLE, LIFE};
use super::*;
use crate::control::access::Role;
use crate::control::main_role::routes::ROUTES;
use crate::control::model::page::PageQuery;
use crate::control::model::request::RequestFilter;
use crate::control::testing_main::TestMain;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn ask(main: &TestMain, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(main.address).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", main.address);
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap()[9..12].parse().unwrap();
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}

/// A browser that is logged in.
struct Browser<'a> {
    main: &'a TestMain,
    origin: String,
    cookie: String,
    csrf: String,
}

fn log_in<'a>(main: &'a TestMain, token: &str) -> Browser<'a> {
    let origin = format!("http://{}", main.address);
    let body = json!({"token": token}).to_string();
    let answer = ask(main, "POST", "/ui/login", &[("origin", &origin), ("content-type", "application/json")], &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let csrf = answer.json()["csrf"].as_str().unwrap().to_owned();
    Browser { main, origin, cookie, csrf }
}

impl Browser<'_> {
    fn get(&self, path: &str) -> Answer {
        ask(self.main, "GET", path, &[("cookie", &self.cookie)], "")
    }

    fn send(&self, method: &str, path: &str, more: &[(&str, &str)], body: &Value) -> Answer {
        let own = [("cookie", self.cookie.as_str()), ("if-match", "\"1\""), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        ask(self.main, method, path, &[&own, more].concat(), &body)
    }

    fn honest(&self) -> [(&str, &str); 2] {
        [("origin", &self.origin), (CSRF_HEADER, &self.csrf)]
    }
}

#[test]
fn every_route_of_the_page_has_its_headers() {
    assert!(!CSP.contains("unsafe") && !CSP.contains('*') && !CSP.contains("data:") && !CSP.contains("http"), "{CSP}");
    assert!(CSP.contains("default-src 'none'") && CSP.contains("frame-ancestors 'none'"));
    let main = TestMain::start();
    let viewer = main.token("v", &[Role::Viewer]);
    let browser = log_in(&main, &viewer);
    let api =
        ["/ui/session", "/v1/requests", "/v1/requests/req_none", "/v1/agents", "/v1/catalog/datasets", "/openapi.json"];
    for path in FILES.iter().map(|f| f.0).chain(api) {
        for (method, cookie) in [("GET", true), ("GET", false), ("HEAD", true)] {
            let answer = match cookie {
                true => ask(&main, method, path, &[("cookie", &browser.cookie)], ""),
                false => ask(&main, method, path, &[], ""),
            };
            for (name, want) in [
                ("content-security-policy", CSP),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("x-frame-options", "DENY"),
                ("cross-origin-opener-policy", "same-origin"),
                ("cross-origin-resource-policy", "same-origin"),
            ] {
                assert_eq!(answer.header(name), Some(want), "{method} {path} ({})", answer.status);
            }
            assert!(answer.header("access-control-allow-origin").is_none());
        }
    }
    for (path, kind, text) in FILES {
        let answer = ask(&main, "GET", path, &[], "");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(*kind)), "{path}");
        assert_eq!(answer.body, *text, "{path}");
    }
    // What says who somebody is stays in no cache.
    assert_eq!(browser.get("/ui/session").header("cache-control"), Some("no-store"));
}

/// Files that keep the policy: no inline script or style, nothing from elsewhere, no way from text to markup.
#[test]
fn the_files_make_no_markup_out_of_text() {
    let html = FILES[0].2;
    for word in [" on", "style=", "<style", "javascript:", "http:", "https:", "//"] {
        assert!(!html.contains(word), "index.html has `{word}`");
    }
    for tag in html.match_indices("<script").map(|(at, _)| &html[at..]) {
        assert!(tag[..tag.find('>').unwrap()].contains("src=\"/ui/"), "an inline script");
    }
    for (path, kind, text) in FILES.iter().filter(|f| f.1 == JS) {
        for sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "createContextualFragment",
            "parseFromString",
            "srcdoc",
            "\"style\"",
            "setHTML",
            "javascript:",
            "http:",
            "https:",
            "localStorage",
            "sessionStorage",
            "document.cookie",
            "import(",
        ] {
            assert!(!text.contains(sink), "{path} ({kind}) has `{sink}`");
        }
        for line in text.lines().filter(|l| l.starts_with("import ")) {
            let from = line.split('"').nth(1).unwrap();
            let served = format!("/ui/{}", from.strip_prefix("./").unwrap());
            assert!(FILES.iter().any(|f| f.0 == served), "{path} imports {from}, which is not served");
        }
    }
    for (path, _, text) in FILES.iter().filter(|f| f.1 == CSS) {
        assert!(!text.contains("url(") && !text.contains("@import"), "{path} loads something");
    }
}

/// What somebody named so that it would be markup or script comes as JSON that nothing takes for a page.
#[test]
fn names_stay_text() {
    const BAD: &str = "</script><img src=x onerror=alert(1)>";
    let main = TestMain::start();
    main.agent("s1");
    main.agent("d1");
    let ada = main.token("ada", &[Role::Submitter, Role::Operator]);
    let browser = log_in(&main, &ada);
    let lfn = format!("/x/{BAD}").replace("</", "<");
    let record = json!([{"lfn": lfn, "bytes": 1, "agent": "s1"}]);
    assert_eq!(browser.send("POST", "/v1/catalog/records", &browser.honest(), &record).status, 200);
    let spec = json!({"select": {"files": [lfn]}, "destinations": ["d1"], "comment": BAD, "labels": {BAD.replace('=', ""): BAD}});
    let made = browser.send("POST", "/v1/requests", &browser.honest(), &spec);
    assert_eq!(made.status, 201, "{}", made.body);
    for path in ["/v1/requests", "/v1/catalog/files?prefix=/x", made.header("location").unwrap()] {
        let answer = browser.get(path);
        assert!(answer.status == 200 && answer.body.contains("onerror=alert(1)"), "{path}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    // An error that quotes what it was given is a document too.
    let answer = browser.get("/v1/requests/%3Cscript%3Ealert(1)%3C%2Fscript%3E");
    assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/problem+json")));
}

#[test]
fn a_login_takes_a_token_in_a_body_from_this_page_only() {
    let main = TestMain::start();
    let token = main.token("v", &[Role::Viewer]);
    let origin = format!("http://{}", main.address);
    let json_type = ("content-type", "application/json");
    let body = json!({"token": token}).to_string();
    let try_it = |headers: &[(&str, &str)], body: &str| {
        let answer = ask(&main, "POST", "/ui/login", headers, body);
        assert!(answer.status == 200 || answer.header("set-cookie").is_none());
        assert!(!answer.body.contains(&token), "an answer tells the token");
        answer.status
    };
    let here = ("origin", origin.as_str());
    assert_eq!(try_it(&[here, json_type], &body), 200);
    assert_eq!(try_it(&[json_type], &body), 403, "no origin");
    assert_eq!(try_it(&[("origin", "http://evil.example"), json_type], &body), 403);
    assert_eq!(try_it(&[("origin", "null"), json_type], &body), 403);
    assert_eq!(try_it(&[here, ("sec-fetch-site", "cross-site"), json_type], &body), 403);
    assert_eq!(try_it(&[here, ("origin", "http://evil.example"), json_type], &body), 403, "two origins");
    assert_eq!(try_it(&[here, ("content-type", "application/x-www-form-urlencoded")], &body), 400);
    assert_eq!(try_it(&[here, ("content-type", "text/plain")], &body), 400);
    assert_eq!(try_it(&[here, json_type], &json!({"token": "lht_no"}).to_string()), 401);
    assert_eq!(try_it(&[here, json_type], &json!({"token": format!("lht_{}", "0".repeat(64))}).to_string()), 401);
    assert_eq!(try_it(&[here, json_type], &format!("{{\"token\": \"{token}\", \"x\": 1}}")), 400);
    assert_eq!(try_it(&[here, json_type], &format!("{{\"token\": \"{}\"}}", "x".repeat(LOGIN_MAX))), 400);
    assert_eq!(ask(&main, "GET", &format!("/ui/login?token={token}"), &[here], "").status, 405);
    let files = NewTokenOf::files(&main);
    assert_eq!(try_it(&[here, json_type], &json!({"token": files}).to_string()), 403, "a token without a role");
}

struct NewTokenOf;

impl NewTokenOf {
    /// A token for paths that has no role at main.
    fn files(main: &TestMain) -> String {
        use crate::control::tokens::NewToken;
        let new = NewToken { name: "f".into(), prefixes: vec![Default::default()], read: true, ..NewToken::default() };
        main.tokens.add(&new).unwrap().expose().to_owned()
    }
}

#[test]
fn the_cookie_is_out_of_reach_of_scripts_and_other_sites() {
    let main = TestMain::start();
    let token = main.token("v", &[Role::Viewer]);
    let origin = format!("http://{}", main.address);
    let body = json!({"token": token}).to_string();
    let answer = ask(&main, "POST", "/ui/login", &[("origin", &origin), ("content-type", "application/json")], &body);
    let cookie = answer.header("set-cookie").unwrap();
    let parts: Vec<_> = cookie.split("; ").collect();
    assert_eq!(parts[1..], ["Path=/", "HttpOnly", "SameSite=Strict"], "{cookie}");
    assert!(parts[0].starts_with(&format!("longhaul-{}=", main.address.port())));
    assert!(!cookie.contains(&token));
    // Over TLS it never leaves in the clear.
    let secure = session::Place { port: 8470, tls: true };
    assert_eq!(secure.cookie("x"), "__Host-longhaul-8470=x; Path=/; HttpOnly; SameSite=Strict; Secure");
    assert!(secure.gone().ends_with("; Max-Age=0"));

    let browser = log_in(&main, &token);
    assert_eq!(browser.get("/v1/requests").status, 200);
    let pair = browser.cookie.as_str();
    let id = pair.split_once('=').unwrap().1;
    for cookie in [
        format!("{pair}; {pair}"),
        format!("other={id}"),
        format!("longhaul-1={id}"),
        pair.replace('=', "=0"),
        "x".into(),
    ] {
        assert_eq!(ask(&main, "GET", "/v1/requests", &[("cookie", &cookie)], "").status, 401, "{cookie}");
    }
    assert_eq!(ask(&main, "GET", "/v1/requests", &[("cookie", &format!("a=b; {pair}"))], "").status, 200);
}

/// Every route that changes something, by a browser that some other site leads: refused before anything is looked at.
#[test]
fn another_site_changes_nothing() {
    let main = TestMain::start();
    let all = main.token("all", &Role::ALL);
    let browser = log_in(&main, &all);
    let here = ("origin", browser.origin.as_str());
    let word = (CSRF_HEADER, browser.csrf.as_str());
    let port = format!("http://{}:{}", main.address.ip(), main.address.port().wrapping_add(1));
    let secure = browser.origin.replace("http:", "https:");
    let attempts: &[(&str, &[(&str, &str)])] = &[
        ("nothing", &[]),
        ("no word", &[here]),
        ("no origin", &[word]),
        ("another origin", &[("origin", "http://evil.example"), word]),
        ("another port", &[("origin", &port), word]),
        ("another scheme", &[("origin", &secure), word]),
        ("a hidden origin", &[("origin", "null"), word]),
        ("a wrong word", &[here, (CSRF_HEADER, "0")]),
        ("an empty word", &[here, (CSRF_HEADER, "")]),
        ("what the browser says itself", &[here, word, ("sec-fetch-site", "same-site")]),
    ];
    let mut routes: Vec<(String, String)> = ROUTES
        .iter()
        .filter(|r| !r.method.is_safe())
        .map(|r| (r.method.to_string(), r.path.replace("{id}", "req_0").replace("{name}", "d1")))
        .collect();
    assert!(routes.len() > 12);
    routes.push(("POST".into(), "/ui/logout".into()));
    for (method, path) in &routes {
        for (how, headers) in attempts {
            let answer = browser.send(method, path, headers, &json!({}));
            assert_eq!(answer.status, 403, "{method} {path} with {how}: {}", answer.body);
        }
        if path != "/ui/logout" {
            let answer = browser.send(method, path, &browser.honest(), &json!({}));
            assert_ne!(answer.status, 403, "{method} {path} by the page itself: {}", answer.body);
        }
    }
    assert!(main.run(main.store.agents()).unwrap().is_empty());
    // Whoever brings a token of his own is no browser that was led.
    let bearer = format!("Bearer {all}");
    let answer = browser.send("PUT", "/v1/policies/approval", &[("authorization", &bearer)], &json!([]));
    assert_eq!(answer.status, 200, "{}", answer.body);
    // A cookie gives a request with a bad token nothing.
    let answer =
        ask(&main, "GET", "/v1/requests", &[("cookie", &browser.cookie), ("authorization", "Bearer lht_x")], "");
    assert_eq!(answer.status, 401);
}

/// What an approver saw is what he decides about: by version and digest, and once.
#[test]
fn a_decision_is_about_what_was_seen_and_counts_once() {
    let main = TestMain::start();
    main.agent("s1");
    main.agent("d1");
    main.files("s1", "/raw", 2);
    let all = main.token("all", &Role::ALL);
    let browser = log_in(&main, &all);
    let spec = json!({"select": {"dataset": "/raw"}, "destinations": ["d1"]});
    let made = browser.send("POST", "/v1/requests", &browser.honest(), &spec);
    let path = made.header("location").unwrap().to_owned();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let seen = loop {
        let seen = browser.get(&path);
        if seen.json()["state"] == "pending_approval" {
            break seen;
        }
        assert!(std::time::Instant::now() < until, "{}", seen.body);
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let digest = seen.json()["digest"].clone();
    let decide = |tag: &str, digest: &Value| {
        let head = [("cookie", browser.cookie.as_str()), ("if-match", tag), ("content-type", "application/json")];
        let body = json!({"decision": "approve", "digest": digest}).to_string();
        ask(&main, "POST", &format!("{path}/approval"), &[&head[..], &browser.honest()].concat(), &body)
    };
    let tag = seen.header("etag").unwrap();
    assert_eq!(decide("\"0\"", &digest).status, 412, "another version");
    assert_eq!(decide(tag, &json!("0".repeat(64))).status, 409, "another digest");
    assert_eq!(browser.get(&path).json()["state"], "pending_approval");
    assert_eq!(decide(tag, &digest).status, 200);
    assert!(matches!(decide(tag, &digest).status, 409 | 412), "the same click twice");
    let now = browser.get(&path).json();
    assert_eq!((now["state"].as_str(), now["decisions"].as_array().unwrap().len()), (Some("active"), 1));
}

#[test]
fn a_session_is_no_more_than_its_token() {
    let main = TestMain::start();
    main.agent("d1");
    let viewer = main.token("v", &[Role::Viewer]);
    let browser = log_in(&main, &viewer);
    let known = browser.get("/ui/session").json();
    assert_eq!((known["name"].as_str(), known["roles"].clone()), (Some("v"), json!(["viewer"])));
    assert_eq!(known["csrf"].as_str(), Some(browser.csrf.as_str()));
    assert_eq!(browser.send("PUT", "/v1/policies/approval", &browser.honest(), &json!([])).status, 403);
    let drain = browser.send("POST", "/v1/agents/d1/drain", &browser.honest(), &json!({"draining": true}));
    assert_eq!(drain.status, 403);
    assert!(!main.run(main.store.agents()).unwrap()[0].draining);

    main.tokens.revoke("v").unwrap();
    assert_eq!(browser.get("/v1/requests").status, 401);
    assert_eq!(browser.get("/ui/session").status, 401);

    let other = main.token("w", &[Role::Operator]);
    let browser = log_in(&main, &other);
    assert_eq!(browser.send("POST", "/v1/agents/d1/drain", &browser.honest(), &json!({"draining": true})).status, 200);
    let out = browser.send("POST", "/ui/logout", &browser.honest(), &Value::Null);
    assert!(out.status == 204 && out.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(browser.get("/v1/requests").status, 401);
    assert!(main.run(main.store.requests(RequestFilter::default(), PageQuery::default())).unwrap().items.is_empty());
}

#[test]
fn sessions_end_and_make_room() {
    let main = TestMain::start();
    let token = main.token("v", &[Role::Viewer]);
    let sessions = Sessions::new(main.tokens.clone());
    let (first, _) = sessions.open(&token).unwrap();
    let (second, _) = sessions.open(&token).unwrap();
    assert_ne!(first, second);
    let of = |id: &str| {
        let cookie = session::Place { port: 0, tls: false }.cookie(id);
        Request::builder().header(header::COOKIE, cookie.split(';').next().unwrap()).body(Default::default()).unwrap()
    };
    assert!(sessions.current(&of(&first)).is_ok());
    sessions.age(&first, IDLE, IDLE);
    assert!(sessions.current(&of(&first)).is_err(), "unused for too long");
    sessions.age(&second, LIFE, std::time::Duration::ZERO);
    assert!(sessions.current(&of(&second)).is_err(), "open for too long");
    let (oldest, _) = sessions.open(&token).unwrap();
    for _ in 0..session::MAX_SESSIONS {
        sessions.open(&token).unwrap();
    }
    assert!(sessions.current(&of(&oldest)).is_err());
    assert!(sessions.count() <= session::MAX_SESSIONS);
}
