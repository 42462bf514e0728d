//! An HTTP port that is no agent's.

#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

/// The key of the ticket.
pub const KEY: [u8; 32] = [5; 32];
/// Its number.
pub const TICKET: [u8; 16] = [4; 16];

/// An HTTP port that gives out the same ticket for `data` to everybody, and says that every path is a directory.
pub fn tickets_for(data: SocketAddr) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ticket = serde_json::json!({
        "id": hex::encode(TICKET), "key": hex::encode(KEY), "data": [data], "agent": hex::encode([2; 16]),
        "expires": 4_000_000_000u64,
    });
    let ticket = ticket.to_string();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&request).to_lowercase();
            let length =
                head.split("content-length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok()).unwrap_or(0);
            let _ = socket.read_exact(&mut vec![0; length]);
            let (status, body) = match head.starts_with("get /v1/stat?") {
                true => ("200 OK", "{\"kind\":\"directory\",\"size\":0}"),
                false => ("201 Created", ticket.as_str()),
            };
            let _ = write!(
                socket,
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}
