//! Logical names and where they are: dataset, block, file, replica. A destination keeps its own; main keeps an index of all.

use super::name::{AgentName, BlockName, DatasetName, Lfn};
use super::time::Time;
use serde::{Deserialize, Serialize};

/// Records of one batch.
pub const MAX_RECORDS: usize = 1000;

/// Whether a replica can be read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Locality {
    /// At once.
    #[default]
    Online,
    /// After a recall.
    Offline,
}

/// One replica of one file, as agents and clients add it. Again for the same file and agent: replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The dataset; with `block`, or neither.
    #[serde(default)]
    pub dataset: Option<DatasetName>,
    /// The block.
    #[serde(default)]
    pub block: Option<BlockName>,
    /// The file.
    pub lfn: Lfn,
    /// Its size. Another size of the same name is a conflict (409): logical files do not change.
    pub bytes: u64,
    /// Its digest, hex. As with the size.
    #[serde(default)]
    pub digest: Option<String>,
    /// Who has it.
    pub agent: AgentName,
    /// Where, below that agent's root; by default the logical name.
    #[serde(default)]
    pub path: Option<Lfn>,
    /// Whether it can be read at once.
    #[serde(default)]
    pub locality: Locality,
}

/// A dataset or a block with its sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// The dataset, of a block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetName>,
    /// Blocks, of a dataset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A file with its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileView {
    /// The file.
    pub lfn: Lfn,
    /// Its dataset.
    pub dataset: Option<DatasetName>,
    /// Its block.
    pub block: Option<BlockName>,
    /// Its size.
    pub bytes: u64,
    /// Its digest, once known.
    pub digest: Option<String>,
    /// Who has it.
    pub replicas: Vec<ReplicaView>,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplicaView {
    /// Who.
    pub agent: AgentName,
    /// Where, below its root.
    pub path: Lfn,
    /// Whether it can be read at once.
    pub locality: Locality,
    /// When it was last proved equal to the digest.
    pub verified: Option<Time>,
}

/// Which files a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileFilter {
    /// Of this dataset.
    pub dataset: Option<DatasetName>,
    /// Of this block.
    pub block: Option<BlockName>,
    /// Below this path, by components.
    pub prefix: Option<Lfn>,
    /// With a replica there.
    pub agent: Option<AgentName>,
}
