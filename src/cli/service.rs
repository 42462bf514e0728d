//! What the commands that talk to a main share: where it is, pages, tables, times.

use super::cp::TlsArgs;
use super::fail::{Fail, finish, printable, say};
use crate::control::client::service::{MAIN_VAR, MainClient, no_main};
use crate::control::client::{ClientOptions, PeerClient};
use crate::control::model::page::{MAX_PAGE, Page, PageQuery};
use crate::control::model::time::Time;
use crate::control::tls::Fingerprint;
use crate::control::url::PeerUrl;
use crate::engine::error::TransferError;
use serde::Serialize;
use std::future::Future;
use std::path::PathBuf;

/// Where main is, and how to talk to it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MainArgs {
    /// Main, as `lh://host[:port]` [default: $LONGHAUL_MAIN]
    #[arg(long, value_name = "URL", value_parser = super::cp::parse_url, global = true)]
    pub main: Option<PeerUrl>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// File with the token for main [default: $LONGHAUL_TOKEN_FILE]
    #[arg(long, value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of main's certificate
    #[arg(long, value_name = "HEX", global = true)]
    pub peer_fingerprint: Option<Fingerprint>,
    /// File of pinned agents [default: ~/.config/longhaul/known_peers]
    #[arg(long, value_name = "FILE", global = true)]
    pub known_peers: Option<PathBuf>,
    /// Allow plain HTTP off loopback: the token can be read on the way
    #[arg(long, global = true)]
    pub insecure_http: bool,
    /// A private authority, and what this client shows.
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl MainArgs {
    fn client(&self) -> Result<MainClient, Fail> {
        let url = match &self.main {
            Some(url) => url.clone(),
            None => {
                let typed =
                    std::env::var(MAIN_VAR).ok().filter(|v| !v.is_empty()).ok_or_else(|| Fail::usage(no_main()))?;
                PeerUrl::parse(typed.as_bytes()).map_err(|e| Fail::usage(format!("{MAIN_VAR}: {e}")))?
            }
        };
        let options = ClientOptions {
            token_file: self.token_file.clone(),
            fingerprint: self.peer_fingerprint,
            known_peers: self.known_peers.clone(),
            insecure_http: self.insecure_http,
            tls: self.tls.own(),
            patience: None,
        };
        Ok(MainClient::new(PeerClient::new(url, options)?))
    }
}

/// Runs `work` with a client for main. The exit code.
pub fn run<F>(args: &MainArgs, work: impl FnOnce(MainClient) -> F) -> u8
where
    F: Future<Output = Result<u8, Fail>>,
{
    let done = || {
        let client = args.client()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Fail::new(1, format!("cannot start: {e}")))?;
        let result = runtime.block_on(work(client));
        // A thread may still read a file that nobody wants any more.
        runtime.shutdown_background();
        result
    };
    finish(args.json, done())
}

/// Prints `value` as the one document that `--json` promises.
pub fn say_json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        say(&format!("{text}\n"));
    }
}

/// How much of a list is shown.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Amount {
    /// Rows at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// Every row, however many
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
}

/// Fetches pages until there is enough. Whether there is more.
pub async fn pages<T, F>(amount: Amount, mut page: impl FnMut(PageQuery) -> F) -> Result<(Vec<T>, bool), Fail>
where
    F: Future<Output = Result<Page<T>, TransferError>>,
{
    let wanted = if amount.all { usize::MAX } else { amount.limit };
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let limit = Some((wanted - rows.len()).clamp(1, MAX_PAGE));
        let Page { items, next } = page(PageQuery { cursor, limit }).await?;
        rows.extend(items);
        if next.is_none() || rows.len() >= wanted {
            rows.truncate(wanted);
            return Ok((rows, next.is_some()));
        }
        cursor = next;
    }
}

/// Says that a list goes on, on stderr: stdout is for programs.
pub fn more(there_is: bool) {
    if there_is {
        eprintln!("There is more: --limit N or --all shows it.");
    }
}

/// Columns under their heads, as wide as they need to be. What a cell says is shown, never obeyed.
pub fn table<const N: usize>(heads: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(|cell| printable(&cell))).collect();
    let mut widths = heads.map(|head| head.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(heads.map(str::to_owned)).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// To the second.
pub fn moment(time: Time) -> String {
    let text = Time(time.0.div_euclid(1000) * 1000).to_string();
    text.replace(".000Z", "Z").replace('T', " ")
}

/// A moment as typed: RFC 3339, or a span from now such as `2h`.
pub fn parse_moment(text: &str) -> Result<Time, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    super::token::parse_life(text).map(|span| Time::now().plus_secs(span.as_secs())).map_err(|_| {
        format!("`{text}` is no time: write 2026-12-01T08:00:00Z, or a span from now such as 90m, 12h, 3d")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_drive_no_terminal() {
        let rows = [["a".to_owned(), "x\x1b[2J".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "WHAT"], rows), "NAME    WHAT\na       x\\u{1b}[2J\nlonger\n");
    }

    #[test]
    fn moments_as_typed() {
        let fixed = Time(1_700_000_000_000);
        assert_eq!(parse_moment("2023-11-14T22:13:20Z"), Ok(fixed));
        assert_eq!(moment(Time(fixed.0 + 987)), "2023-11-14 22:13:20Z");
        let soon = parse_moment("2h").unwrap().0 - Time::now().0;
        assert!((7_190_000..=7_200_000).contains(&soon), "{soon}");
        assert!(parse_moment("tomorrow").unwrap_err().contains("90m"));
    }

    #[tokio::test]
    async fn pages_are_followed_until_there_is_enough() {
        let page = |query: PageQuery| async move {
            let from: usize = query.cursor.map_or(0, |c| c.parse().unwrap());
            let to = (from + query.limit.unwrap().min(7)).min(20);
            Ok(Page { items: (from..to).collect(), next: (to < 20).then(|| to.to_string()) })
        };
        let take = |limit, all| pages(Amount { limit, all }, page);
        assert_eq!(take(10, false).await.unwrap(), ((0..10).collect(), true));
        assert_eq!(take(20, false).await.unwrap(), ((0..20).collect(), false));
        assert_eq!(take(1, true).await.unwrap(), ((0..20).collect::<Vec<_>>(), false));
    }
}
