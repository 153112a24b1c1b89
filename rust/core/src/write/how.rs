//! How tokens are written: what the configuration of a bank says of it.

use mnemex_kernels::canonical::Metric;

use crate::codec::Codec;
use crate::config::{Config, Evict, NonFinite};
use crate::error::{Kind, Result, ensure};
use crate::lane::Lane;
use crate::write::pages::Paging;

/// What becomes of tokens that are written.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Each becomes an entry.
    Append,
    /// What is near an entry is merged into it.
    Consolidate(Consolidation),
    /// Neighbours in time that are alike are merged.
    MergeAdjacent(Adjacency),
    /// What is near a representative joins its cluster, of which a sample is kept.
    Cluster(Clustering),
    /// Each becomes an entry of a page, which is read as one.
    Pages(Paging),
    /// A policy of that name decides, which lies outside this crate: see [`Planner`](crate::write::Planner).
    Planned(String),
}

/// How neighbours in time are merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjacency {
    /// Entries that are left of a segment.
    pub n: u64,
    /// Ids of a segment; None: what a commit brings is one.
    pub segment: Option<u64>,
    /// What says how much alike: [`Metric::Cos`] or [`Metric::Dot`].
    pub similarity: Metric,
    /// What two weigh when they become one.
    pub weigh: Weigh,
    /// What happens to a lane that is too full.
    pub beyond: Beyond,
}

/// What two entries weigh when they become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weigh {
    /// As many tokens as they stand for.
    Count,
    /// The same.
    Equal,
}

/// What happens to a lane that is too full after its segments were merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// The evict policy is asked.
    Evict,
    /// Neighbours are merged, wherever they stand.
    Merge,
}

/// How clusters grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clustering {
    /// Largest Euclidean distance of a member's key to the representative's.
    pub delta: f64,
    /// Members of a cluster that are kept beside its representative, at most.
    pub reservoir: u64,
    /// Of the lots.
    pub seed: u64,
}

/// How tokens are merged into entries that they are near.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Consolidation {
    /// A token whose nearest entry scores so much or more is merged into it.
    pub threshold: f64,
    /// What says how near: [`Metric::Cos`] or [`Metric::Dot`], whatever entries are ranked by in searches.
    pub similarity: Metric,
    /// What an entry becomes.
    pub merge: Merge,
    /// What tokens of one commit see of each other.
    pub conflicts: Conflicts,
}

/// What becomes of an entry that tokens are merged into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Merge {
    /// The mean of everything that was ever written into it.
    Mean,
    /// (1 - rate) of it and rate of the mean of the tokens.
    Ema {
        /// From 0, exclusive, to 1.
        rate: f64,
    },
}

/// What tokens of one commit see of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflicts {
    /// Nothing: all see the lane as it was, and those that choose one entry are merged into it together.
    BatchMean,
    /// Each sees what those before it did.
    Sequential,
}

impl Write {
    /// Its name in Python and in files.
    pub fn name(&self) -> &str {
        match self {
            Write::Append => "append",
            Write::Consolidate(_) => "consolidate",
            Write::MergeAdjacent(_) => "merge_adjacent",
            Write::Cluster(_) => "cluster",
            Write::Pages(_) => "pages",
            Write::Planned(name) => name,
        }
    }

    /// Whether entries stand for more than one token.
    pub fn merges(&self) -> bool {
        !matches!(self, Write::Append | Write::Pages(_))
    }

    /// Whether what tokens become is a mean, which is kept in float32.
    pub fn averages(&self) -> bool {
        matches!(self, Write::Consolidate(_) | Write::MergeAdjacent(_) | Write::Planned(_))
    }

    /// Why NaN and infinity are never stored, where tokens are merged.
    pub(crate) fn no_nan(&self) -> &'static str {
        if self.averages() {
            "one NaN would spoil every mean that it is merged into"
        } else {
            "NaN is at no distance from anything"
        }
    }

    /// Refuses what cannot be, or does not go with the rest of the bank.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        let ensure = |holds: bool, say: &dyn Fn() -> String| ensure(holds, Kind::Argument, say);
        let similarity = |similarity: Metric| {
            ensure(similarity != Metric::L2, &|| "write: similarity must be \"cos\" or \"dot\"".into())
        };
        let policy = match self {
            Write::Append => return Ok(()),
            Write::Pages(how) => return how.check(config),
            Write::Planned(name) => {
                ensure(!name.is_empty() && !name.contains('\0') && name.len() <= MAX_NAME, &|| {
                    format!("write: the policy's name must have 1 to {MAX_NAME} bytes and no NUL")
                })?;
                name
            }
            Write::Consolidate(how) => {
                ensure(!how.threshold.is_nan(), &|| "write: threshold=nan must be a number".into())?;
                similarity(how.similarity)?;
                if let Merge::Ema { rate } = how.merge {
                    ensure(rate > 0.0 && rate <= 1.0, &|| format!("write: rate={rate} must be above 0 and at most 1"))?;
                }
                "Consolidate"
            }
            Write::MergeAdjacent(how) => {
                let Adjacency { n, segment, similarity: of, beyond, .. } = *how;
                ensure(n >= 1, &|| "write: n=0 must be at least 1".into())?;
                ensure(segment.is_none_or(|segment| segment >= n), &|| {
                    format!("write: segment={} must be at least n={n}, or None", segment.unwrap_or(0))
                })?;
                ensure(beyond == Beyond::Evict || config.capacity.is_some(), &|| {
                    "write: beyond=\"merge\" needs a capacity, beyond which entries are merged: capacity=256, for one"
                        .into()
                })?;
                similarity(of)?;
                "MergeAdjacent"
            }
            Write::Cluster(how) => {
                let Clustering { delta, reservoir, .. } = *how;
                ensure(delta >= 0.0 && delta.is_finite(), &|| format!("write: delta={delta} must be 0 or more"))?;
                ensure(reservoir >= 1, &|| "write: reservoir=0 must be at least 1".into())?;
                "Cluster"
            }
        };
        for (name, codec) in [("key_codec", config.key_codec), ("value_codec", config.value_codec)] {
            ensure(!self.averages() || codec.is_none_or(|codec| codec == Codec::F32), &|| {
                format!(
                    "{name}={:?} rounds a running mean at every merge: write={policy} keeps float32, {name}=\"f32\" \
                     or \"auto\", which takes narrower types too",
                    codec.map_or("auto", Codec::name)
                )
            })?;
        }
        ensure(config.nonfinite != NonFinite::Keep, &|| {
            format!("nonfinite=\"keep\": {}; with write={policy}, \"raise\" or \"skip\"", self.no_nan())
        })?;
        // A planner may make room by itself: whether it did is known at the commit.
        ensure(config.evict != Evict::Error || matches!(self, Write::Planned(_)), &|| {
            format!(
                "evict=\"error\" refuses tokens before anybody knows whether they will be merged: with write={policy} name \
                 who goes, as in evict=OldestAge()"
            )
        })?;
        let own = |name: &str| config.columns.iter().any(|column| column.name == name);
        ensure(!own(COUNT), &|| {
            format!("columns={COUNT:?}: with write={policy} it is there already, the tokens that an entry stands for")
        })?;
        ensure(!own(LOG_WEIGHT), &|| {
            format!("columns={LOG_WEIGHT:?}: with write={policy} it is there already, what `attend` adds to logits")
        })
    }

    /// The logarithm of the tokens that an entry stands for in a softmax.
    pub(crate) fn log_weight(&self, lane: &Lane, id: i64) -> f32 {
        let used = lane.used(id);
        let weight = match (self, used.founder()) {
            (Write::Append | Write::Pages(_), _) => 1.0,
            (Write::Cluster(how), Some(founder)) if lane.locate(founder).is_some() => {
                // The members of which it is one sample of several.
                let members = lane.used(founder).count.saturating_sub(1).max(1);
                members as f64 / members.min(how.reservoir) as f64
            }
            // A representative stands for itself, and so does a sample whose representative has ended.
            (Write::Cluster(_), _) => 1.0,
            _ => used.count.max(1) as f64,
        };
        weight.ln() as f32
    }
}

/// Longest name of a policy outside this crate, in bytes.
const MAX_NAME: usize = 256;

/// The column of tokens that each entry stands for, where tokens are merged.
pub const COUNT: &str = "count";

/// The column of logarithms of the tokens that each entry weighs in a softmax, where tokens are merged.
pub const LOG_WEIGHT: &str = "log_weight";
