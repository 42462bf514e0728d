//! An agent as main knows one: registered, in a session, claiming and reporting, with a memory of its own that outlives main.

use crate::http::{Client, Reply};
use crate::support::SOON;
use crate::world::World;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A digest of 16 bytes.
pub fn digest(of: &str) -> String {
    let sum = of.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("{sum:016x}{sum:016x}")
}

/// See the module.
pub struct TestAgent {
    pub client: Client,
    pub name: String,
    url: String,
    storage: Option<String>,
    pub session: Value,
    pub epoch: u64,
    pub seq: u64,
    /// Assignments that it has and has not reported an end of.
    pub held: Vec<Value>,
}

impl TestAgent {
    /// Registered under its own token and in its first session. `url`: what main knocks at.
    pub fn join(world: &World, name: &str, url: &str, storage: Option<&str>) -> Self {
        let client = world.token(name, &["agent"]);
        let mut agent = Self {
            client,
            name: name.to_owned(),
            url: url.to_owned(),
            storage: storage.map(str::to_owned),
            session: Value::Null,
            epoch: 0,
            seq: 0,
            held: Vec::new(),
        };
        agent.register().expect(201);
        agent.open();
        agent
    }

    pub fn id(&self) -> String {
        let mut id = [0; 16];
        self.name.bytes().zip(&mut id).for_each(|(byte, place)| *place = byte);
        id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn register(&self) -> Reply {
        let registration = json!({
            "name": self.name, "id": self.id(), "url": self.url, "roles": ["source", "destination"], "version": "test",
            "storage": self.storage,
        });
        self.patient("POST", "/v1/agents", &registration)
    }

    /// Asks until there is an answer that is not "not now": main may be away.
    pub fn patient(&self, method: &str, path: &str, body: &Value) -> Reply {
        patient(&self.client, method, path, &[], body.to_string().as_bytes())
    }

    fn path(&self, what: &str) -> String {
        format!("/v1/agents/{}/{what}", self.name)
    }

    /// A new session, with what it holds. What main does not let it keep it forgets.
    pub fn open(&mut self) -> Value {
        let items: Vec<&Value> = self.held.iter().map(|assignment| &assignment["item"]).collect();
        let open = json!({"id": self.id(), "previous": self.session, "items": items});
        let session = self.patient("POST", &self.path("session"), &open).expect(200).json();
        self.session = session["session"].clone();
        self.epoch = session["epoch"].as_u64().unwrap();
        self.seq = 0;
        let kept = session["kept"].as_array().unwrap();
        self.held.retain(|assignment| kept.contains(&assignment["item"]));
        session
    }

    /// The heartbeat.
    pub fn renew(&self) -> Reply {
        let renewal = json!({"session": self.session, "epoch": self.epoch, "status": {}});
        self.patient("PUT", &self.path("session"), &renewal)
    }

    fn claim_body(&self, side: &str, limit: usize) -> Value {
        let seq = self.seq + 1;
        json!({"session": self.session, "session_epoch": self.epoch, "seq": seq, "side": side, "limit": limit})
    }

    /// The claim that comes next; it is the same again until an answer to it was taken.
    pub fn try_claim(&self, limit: usize, wait: &str) -> Reply {
        let path = format!("{}?wait={wait}", self.path("claims"));
        self.patient("POST", &path, &self.claim_body("destination", limit))
    }

    /// Sends that claim and does not wait.
    pub fn claim_only(&self, limit: usize) -> std::net::TcpStream {
        self.client.send_only("POST", &self.path("claims"), &[], &self.claim_body("destination", limit))
    }

    /// Takes what a claim was answered with.
    pub fn take(&mut self, reply: &Reply) -> Vec<Value> {
        let given = reply.json().as_array().unwrap().clone();
        self.seq += u64::from(!given.is_empty());
        self.held.extend(given.iter().cloned());
        given
    }

    #[track_caller]
    pub fn claim(&mut self, limit: usize) -> Vec<Value> {
        let reply = self.try_claim(limit, "0s").expect(200);
        self.take(&reply)
    }

    /// What the session holds, as main knows it.
    pub fn assignments(&self) -> Vec<Value> {
        let session = self.session.as_str().unwrap();
        let reply = self.client.get(&format!("{}?session={session}", self.path("assignments")));
        reply.expect(200).json().as_array().unwrap().clone()
    }

    /// Sends reports; what became of each.
    pub fn try_report(&self, reports: &[Value]) -> Reply {
        self.patient("POST", &self.path("reports"), &json!({"session": self.session, "reports": reports}))
    }

    /// One report that must be answered so. An end is forgotten.
    #[track_caller]
    pub fn says(&mut self, report: Value, outcome: &str) {
        let got = self.try_report(std::slice::from_ref(&report)).expect(200).json();
        assert_eq!(got, json!([outcome]), "{report}");
        if !matches!(report["event"].as_str(), Some("hold" | "ready" | "start")) {
            self.held.retain(|assignment| assignment["item"] != report["item"]);
        }
    }

    /// Reports all that it holds as complete.
    pub fn complete_all(&mut self) {
        for assignment in self.held.clone() {
            self.says(complete(&assignment), "accepted");
        }
    }
}

/// Asks until there is an answer other than "not now".
pub fn patient(client: &Client, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let began = Instant::now();
    loop {
        let told = client.raw(method, path, headers, body);
        match told {
            Ok(reply) if reply.status != 503 => return reply,
            other => assert!(began.elapsed() < SOON, "{method} {path}: not within {SOON:?}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A report without extras.
pub fn event(of: &Value, event: &str) -> Value {
    json!({"item": of["item"], "epoch": of["epoch"], "event": event})
}

/// A complete file of ten bytes.
pub fn complete(of: &Value) -> Value {
    let mut report = event(of, "complete");
    report["bytes"] = json!(10);
    report["size"] = json!(10);
    report["digest"] = json!(digest(of["lfn"].as_str().unwrap()));
    report
}

/// A failed try.
pub fn failed(of: &Value, class: &str) -> Value {
    let mut report = event(of, "requeue");
    report["class"] = json!(class);
    report["reason"] = json!("it broke");
    report["retry_after_secs"] = json!(0);
    report
}
