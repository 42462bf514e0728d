//! A small HTTP/1.1 client with nothing of the program's own in it: one connection a request, and event streams.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// For an answer, long-polls included.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The answer, which must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// A problem document with this status and these words.
    #[track_caller]
    pub fn refuses(self, status: u16, words: &str) -> Self {
        let reply = self.expect(status);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
        assert!(reply.body.contains(words), "`{words}` is not said: {}", reply.body);
        reply
    }
}

/// Whoever asks: a port and a token.
#[derive(Debug, Clone)]
pub struct Client {
    pub port: u16,
    pub token: String,
}

impl Client {
    fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<TcpStream> {
        self.open_with(method, path, headers, body, body.len())
    }

    fn open_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        length: usize,
    ) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: main\r\nconnection: close\r\nauthorization: Bearer {}\r\n{more}\
             content-length: {length}\r\n\r\n",
            self.token
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        Ok(stream)
    }

    /// Sends and does not wait: the answer is lost when the stream is dropped.
    pub fn send_only(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> TcpStream {
        self.open(method, path, headers, body.to_string().as_bytes()).unwrap()
    }

    /// Sends `body`, which is to be followed by as much again, and hangs up.
    pub fn cut_off(&self, method: &str, path: &str, body: &[u8]) {
        drop(self.open_with(method, path, &[], body, 2 * body.len()).unwrap());
    }

    /// One request. An error: there was no whole answer.
    pub fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let mut reader = BufReader::new(self.open(method, path, headers, body)?);
        let (status, headers) = head(&mut reader)?;
        let mut body = Vec::new();
        match headers.get("content-length").and_then(|text| text.parse::<u64>().ok()) {
            Some(length) => {
                reader.take(length).read_to_end(&mut body)?;
                if (body.len() as u64) < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            None if headers.contains_key("transfer-encoding") => drop(Chunked::new(reader).read_to_end(&mut body)?),
            None => drop(reader.read_to_end(&mut body)?),
        }
        let body = String::from_utf8(body).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Reply { status, headers, body })
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.raw(method, path, headers, &bytes).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], &Value::Null)
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, &[], body)
    }

    /// All pages of a list.
    pub fn all(&self, path: &str) -> Vec<Value> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let sign = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{sign}limit=1000{cursor}")).expect(200).json();
            found.extend(page["items"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next"].as_str() else { return found };
            cursor = format!("&cursor={}", crate::support::percent(next.as_bytes()));
        }
    }

    /// Follows events after `last`.
    pub fn follow(&self, path: &str, last: i64) -> io::Result<Events> {
        let last = last.to_string();
        let stream = self.open("GET", path, &[("last-event-id", &last), ("accept", "text/event-stream")], &[])?;
        let mut reader = BufReader::new(stream);
        let (status, headers) = head(&mut reader)?;
        if status != 200 || headers.get("content-type").is_none_or(|kind| kind != "text/event-stream") {
            return Err(io::Error::other(format!("no event stream: {status} {headers:?}")));
        }
        Ok(Events(BufReader::new(Chunked::new(reader))))
    }

    /// Every event after `after`, by polling.
    pub fn events(&self, after: i64) -> Vec<Value> {
        let (mut found, mut after) = (Vec::new(), after);
        loop {
            let page = self.get(&format!("/v1/events?after={after}&limit=1000")).expect(200).json();
            let page = page.as_array().unwrap();
            let Some(last) = page.last() else { return found };
            after = last["id"].as_i64().unwrap();
            found.extend(page.iter().cloned());
        }
    }
}

fn head(reader: &mut impl BufRead) -> io::Result<(u16, BTreeMap<String, String>)> {
    let mut line = || -> io::Result<String> {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let status = line()?.get(9..12).and_then(|digits| digits.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut headers = BTreeMap::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { return Ok((status, headers)) };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

/// A chunked body. An end without its last chunk is an error.
struct Chunked<R> {
    inner: R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Chunked<R> {
    fn new(inner: R) -> Self {
        Self { inner, left: 0, ended: false }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.inner.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            self.left = u64::from_str_radix(&self.line()?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let n = (&mut self.inner).take(self.left).read(into)?;
        if n == 0 && !into.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        if self.left == 0 {
            self.line()?;
        }
        Ok(n)
    }
}

/// An event stream.
pub struct Events(BufReader<Chunked<BufReader<TcpStream>>>);

impl Iterator for Events {
    type Item = Value;

    /// The next event; `None` when the stream was cut, or nothing came for long but signs of life. Its `id` and `event` lines
    /// must be those of its document.
    fn next(&mut self) -> Option<Value> {
        let began = Instant::now();
        let (mut id, mut kind, mut data) = (String::new(), String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 || !line.ends_with('\n') {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => id = value.to_owned(),
                Some(("event", value)) => kind = value.to_owned(),
                Some(("data", value)) => data = value.to_owned(),
                None if !data.is_empty() => break,
                Some(("", _)) if began.elapsed() > PATIENCE => return None,
                // A comment, the retry time, or an empty line between.
                _ => {}
            }
        }
        let event: Value = serde_json::from_str(&data).unwrap();
        assert_eq!((event["id"].to_string(), event["kind"].as_str()), (id, Some(kind.as_str())));
        Some(event)
    }
}
