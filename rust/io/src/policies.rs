//! How the policies of a bank, and how much it holds, stand in its manifest.

use mnemex_core::Metric;
use mnemex_core::config::{
    Adjacency, Beyond, Capacity, Clustering, Conflicts, Consolidation, Evict, Merge, Paging, Pins, Weigh, Worth, Write,
};
use serde::{Deserialize, Serialize};

use crate::pages::PagingEntry;

/// Entries per lane: one number, or one for each head.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum CapacityEntry {
    Lane(u64),
    Heads(Vec<u64>),
}

impl CapacityEntry {
    pub(crate) fn of(capacity: &Capacity) -> CapacityEntry {
        match capacity {
            Capacity::Lane(entries) => CapacityEntry::Lane(*entries),
            Capacity::Heads(each) => CapacityEntry::Heads(each.clone()),
        }
    }

    pub(crate) fn capacity(&self) -> Capacity {
        match self {
            CapacityEntry::Lane(entries) => Capacity::Lane(*entries),
            CapacityEntry::Heads(each) => Capacity::Heads(each.clone()),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Metric", rename_all = "lowercase")]
pub(crate) enum MetricEntry {
    Dot,
    Cos,
    L2,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EvictEntry {
    Fifo,
    Error,
    #[serde(untagged)]
    Least(LeastEntry),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeastEntry {
    #[serde(with = "WorthEntry")]
    worth: Worth,
    sinks: u64,
    recent: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Worth", rename_all = "lowercase", deny_unknown_fields)]
enum WorthEntry {
    Age,
    Update,
    Recency,
    Hits {
        decay: f64,
    },
    Mass {
        decay: f64,
        pool: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<u64>,
    },
    Retention {
        strength: f64,
    },
    Score {
        column: String,
        decay: f64,
    },
    Lot {
        seed: u64,
    },
    Reservoir {
        seed: u64,
    },
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WriteEntry {
    Consolidate(#[serde(with = "ConsolidationEntry")] Consolidation),
    MergeAdjacent(#[serde(with = "AdjacencyEntry")] Adjacency),
    Cluster(#[serde(with = "ClusteringEntry")] Clustering),
    Pages(#[serde(with = "PagingEntry")] Paging),
    /// The name of a policy that no file can hold.
    Planned(String),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Consolidation", deny_unknown_fields)]
struct ConsolidationEntry {
    threshold: f64,
    #[serde(with = "MetricEntry")]
    similarity: Metric,
    #[serde(with = "MergeEntry")]
    merge: Merge,
    #[serde(with = "ConflictsEntry")]
    conflicts: Conflicts,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Adjacency", deny_unknown_fields)]
struct AdjacencyEntry {
    n: u64,
    segment: Option<u64>,
    #[serde(with = "MetricEntry")]
    similarity: Metric,
    #[serde(with = "WeighEntry")]
    weigh: Weigh,
    #[serde(with = "BeyondEntry")]
    beyond: Beyond,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Weigh", rename_all = "lowercase")]
enum WeighEntry {
    Count,
    Equal,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Beyond", rename_all = "lowercase")]
enum BeyondEntry {
    Evict,
    Merge,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Clustering", deny_unknown_fields)]
struct ClusteringEntry {
    delta: f64,
    reservoir: u64,
    seed: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Merge", rename_all = "lowercase", deny_unknown_fields)]
enum MergeEntry {
    Mean,
    Ema { rate: f64 },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Conflicts", rename_all = "snake_case")]
enum ConflictsEntry {
    BatchMean,
    Sequential,
}

impl WriteEntry {
    pub(crate) fn of(write: &Write) -> Option<WriteEntry> {
        match write {
            Write::Append => None,
            Write::Consolidate(how) => Some(WriteEntry::Consolidate(*how)),
            Write::MergeAdjacent(how) => Some(WriteEntry::MergeAdjacent(*how)),
            Write::Cluster(how) => Some(WriteEntry::Cluster(*how)),
            Write::Pages(how) => Some(WriteEntry::Pages(*how)),
            Write::Planned(name) => Some(WriteEntry::Planned(name.clone())),
        }
    }

    pub(crate) fn write(self) -> Write {
        match self {
            WriteEntry::Consolidate(how) => Write::Consolidate(how),
            WriteEntry::MergeAdjacent(how) => Write::MergeAdjacent(how),
            WriteEntry::Cluster(how) => Write::Cluster(how),
            WriteEntry::Pages(how) => Write::Pages(how),
            WriteEntry::Planned(name) => Write::Planned(name),
        }
    }
}

impl From<&Evict> for EvictEntry {
    fn from(evict: &Evict) -> EvictEntry {
        match evict {
            Evict::Fifo => EvictEntry::Fifo,
            Evict::Error => EvictEntry::Error,
            Evict::Least(worth, Pins { sinks, recent }) => {
                EvictEntry::Least(LeastEntry { worth: worth.clone(), sinks: *sinks, recent: *recent })
            }
        }
    }
}

impl From<EvictEntry> for Evict {
    fn from(entry: EvictEntry) -> Evict {
        match entry {
            EvictEntry::Fifo => Evict::Fifo,
            EvictEntry::Error => Evict::Error,
            EvictEntry::Least(LeastEntry { worth, sinks, recent }) => Evict::Least(worth, Pins { sinks, recent }),
        }
    }
}
