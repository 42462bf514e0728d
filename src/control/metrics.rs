//! What `/metrics` shows, as OpenMetrics text. Labels never carry a path, a peer or a transfer.

use super::main_role::metrics::MainMetrics;
use crate::engine::handle::TransferStatus;
use crate::engine::spec::Verdict;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    role: &'static str,
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Role {
    role: &'static str,
}

/// The agent's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    transfers: Family<Ended, Counter>,
    bytes: Family<Role, Counter>,
    resent: Counter,
    sent: Counter,
    lost: Counter,
    sessions: Gauge,
    rss: Gauge,
    cpu: Counter<f64, AtomicU64>,
    main: OnceLock<Arc<MainMetrics>>,
}

/// The word for a verdict in labels and logs.
pub fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Durable => "DURABLE",
        Verdict::Verified => "VERIFIED",
        Verdict::Partial => "PARTIAL",
        Verdict::Failed => "FAILED",
        Verdict::Planned => "PLANNED",
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (transfers, bytes) = (Family::<Ended, Counter>::default(), Family::<Role, Counter>::default());
        let (resent, lost, sessions, rss) =
            (Counter::default(), Counter::default(), Gauge::default(), Gauge::default());
        let sent = Counter::default();
        let cpu = Counter::<f64, AtomicU64>::default();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("longhaul_build", "The program", build);
        registry.register("longhaul_transfers", "Transfers that have ended", transfers.clone());
        registry.register("longhaul_bytes", "Bytes of files that reached their verdict", bytes.clone());
        registry.register("longhaul_resent_bytes", "Payload bytes that travelled more than once", resent.clone());
        registry.register("longhaul_sent_bytes", "Payload bytes that sources here have sent", sent.clone());
        registry.register("longhaul_log_lines_lost", "Ended transfers that the log could not follow", lost.clone());
        registry.register("longhaul_sessions", "Transfers that run", sessions.clone());
        registry.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, rss.clone());
        registry.register_with_unit("process_cpu", "User and system time", Unit::Seconds, cpu.clone());
        Self { registry, transfers, bytes, resent, sent, lost, sessions, rss, cpu, main: OnceLock::new() }
    }
}

impl Metrics {
    /// From now on main's are shown as well. Once.
    pub fn attach(&self, main: Arc<MainMetrics>) {
        let _ = self.main.set(main);
    }

    /// Counts a transfer that has ended.
    pub fn ended(&self, status: &TransferStatus) {
        let Some(report) = &status.report else { return };
        let role = status.role;
        self.transfers.get_or_create(&Ended { role, verdict: verdict_word(report.verdict) }).inc();
        self.bytes.get_or_create(&Role { role }).inc_by(report.bytes);
        self.resent.inc_by(report.resent_bytes);
        if role == "source" {
            self.sent.inc_by(report.sent_bytes);
        }
    }

    /// Counts transfers whose end was missed.
    pub fn lost(&self, count: u64) {
        self.lost.inc_by(count);
    }

    /// The text for a scrape.
    pub fn render(&self, sessions: usize) -> String {
        self.sessions.set(sessions as i64);
        self.rss.set(resident_bytes().unwrap_or(0));
        self.cpu.inner().store(cpu_seconds().to_bits(), Ordering::Relaxed);
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        if let Some(main) = self.main.get() {
            text.truncate(text.trim_end_matches("# EOF\n").len());
            text.push_str(&main.render());
        }
        text
    }
}

fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    pages.checked_mul(page)
}

fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::ended_transfer;

    #[test]
    fn counters_have_their_documented_names() {
        let metrics = Metrics::default();
        metrics.ended(&ended_transfer());
        metrics.ended(&ended_transfer());
        let text = metrics.render(3);
        for line in [
            "longhaul_build_info{version=",
            "longhaul_transfers_total{role=\"destination\",verdict=\"VERIFIED\"} 2\n",
            "longhaul_bytes_total{role=\"destination\"} 2000\n",
            "longhaul_resent_bytes_total 14\n",
            "longhaul_sessions 3\n",
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains("process_resident_memory_bytes 0\n"));
    }
}
