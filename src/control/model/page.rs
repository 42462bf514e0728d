//! Lists in pages: keyset, never by offset, so that a page costs the same at the end as at the beginning.

use serde::{Deserialize, Serialize};

/// Rows of one page at most.
pub const MAX_PAGE: usize = 1000;
/// Rows of a page when nothing is said.
pub const DEFAULT_PAGE: usize = 100;

/// Where to begin and how much. The cursor is what [`Page::next`] said: opaque to clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// After this; `None`: from the beginning.
    pub cursor: Option<String>,
    /// 1 to [`MAX_PAGE`] rows.
    pub limit: Option<usize>,
}

impl PageQuery {
    /// Rows asked for, within bounds.
    pub fn rows(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE)
    }
}

/// Some rows, and where the next ones begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// For [`PageQuery::cursor`]; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
