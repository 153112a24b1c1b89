//! What a bank is: fixed when it is made.

use mnemex_kernels::canonical::Metric;

use crate::cells::{ColumnType, Declared, check_declared};
use crate::codec::Codec;
use crate::error::{Kind, Result, ensure};

/// Where values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Keys only; such a bank is searched, not attended.
    None,
    /// The key is the value.
    Key,
    /// Values of their own, of this many numbers.
    Dim(usize),
}

/// What to do about NaN and infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// Refuse the call.
    Raise,
    /// Store and compute with them; a NaN score is never returned.
    Keep,
    /// Leave such tokens unwritten and answer such queries with NaN: what an adapter inside a model wants.
    Skip,
}

/// What an extra copy of the keys is stored as, which first passes read instead of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanCodec {
    /// A byte for each number: see [`mnemex_kernels::codes`].
    Int8,
}

impl ScanCodec {
    /// Every one of them.
    pub const ALL: [ScanCodec; 1] = [ScanCodec::Int8];

    /// Its name in Python and in files.
    pub fn name(self) -> &'static str {
        match self {
            ScanCodec::Int8 => "int8",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<ScanCodec> {
        ScanCodec::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

/// What becomes of tokens that are written.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Each becomes an entry.
    Append,
    /// What is near an entry is merged into it.
    Consolidate(Consolidation),
    /// A policy of that name decides, which lies outside this crate: see [`Planner`](crate::write::Planner).
    Planned(String),
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
            Write::Planned(name) => name,
        }
    }

    /// Whether entries stand for more than one token.
    pub fn merges(&self) -> bool {
        matches!(self, Write::Consolidate(_) | Write::Planned(_))
    }

    /// Refuses what cannot be, or does not go with the rest of the bank.
    fn check(&self, config: &Config) -> Result<()> {
        let ensure = |holds: bool, say: &dyn Fn() -> String| ensure(holds, Kind::Argument, say);
        let part = match self {
            Write::Append => return Ok(()),
            Write::Planned(name) => {
                ensure(!name.is_empty() && !name.contains('\0') && name.len() <= MAX_NAME, &|| {
                    format!("write: the policy's name must have 1 to {MAX_NAME} bytes and no NUL")
                })?;
                name
            }
            Write::Consolidate(Consolidation { threshold, similarity, merge, .. }) => {
                ensure(!threshold.is_nan(), &|| "write: threshold=nan must be a number".into())?;
                ensure(*similarity != Metric::L2, &|| "write: similarity must be \"cos\" or \"dot\"".into())?;
                if let Merge::Ema { rate } = *merge {
                    ensure(rate > 0.0 && rate <= 1.0, &|| format!("write: rate={rate} must be above 0 and at most 1"))?;
                }
                ensure(config.evict != Evict::Error, &|| {
                    "evict=\"error\" refuses tokens before anybody knows whether they will be merged: with \
                     write=Consolidate name who goes, as in evict=OldestAge()"
                        .into()
                })?;
                "Consolidate"
            }
        };
        for (name, codec) in [("key_codec", config.key_codec), ("value_codec", config.value_codec)] {
            ensure(codec.is_none_or(|codec| codec == Codec::F32), &|| {
                format!(
                    "{name}={:?} rounds a running mean at every merge: write={part} keeps float32, {name}=\"f32\" or \
                     \"auto\", which takes narrower types too",
                    codec.map_or("auto", Codec::name)
                )
            })?;
        }
        ensure(config.nonfinite != NonFinite::Keep, &|| {
            format!(
                "nonfinite=\"keep\": one NaN would spoil every mean that it is merged into; with write={part}, \"raise\" or \
                 \"skip\""
            )
        })?;
        ensure(config.columns.iter().all(|column| column.name != COUNT), &|| {
            format!("columns={COUNT:?}: with write={part} it is there already, the tokens that an entry stands for")
        })
    }
}

/// The column of tokens that each entry stands for, where tokens are merged.
pub const COUNT: &str = "count";

/// Longest name of a policy outside this crate, in bytes.
const MAX_NAME: usize = 256;

/// What happens to a write beyond the capacity.
#[derive(Clone, Debug, PartialEq)]
pub enum Evict {
    /// The write is refused.
    Error,
    /// The oldest entries go.
    Fifo,
    /// Those of least worth go, pinned ones aside.
    Least(Worth, Pins),
}

/// What an entry is worth to a lane that is full. Time is counted in commits. Ties: the older one goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Worth {
    /// Its id: the oldest goes.
    Age,
    /// When it was written or last merged into, however often it was used since.
    Update,
    /// When it was written, merged into or last used.
    Recency,
    /// How often it was used, times `decay` for each commit since the last time.
    Hits {
        /// From 0, exclusive, to 1.
        decay: f64,
    },
    /// The softmax mass that it was told to have, times `decay` for each commit since the last time; of the entries `pool`
    /// around it, in the order of ids, the largest counts.
    Mass {
        /// From 0, exclusive, to 1.
        decay: f64,
        /// An odd number of entries.
        pool: usize,
    },
    /// What is left of it in memory: exp(-t / S) a time t after it was last used, of strength S = `strength` + hits.
    Retention {
        /// Above 0.
        strength: f64,
    },
    /// A number of the caller's, times `decay` for each commit since it was written.
    Score {
        /// A float32 column.
        column: String,
        /// From 0, exclusive, to 1.
        decay: f64,
    },
    /// Nothing: entries that were there before a commit go by lot.
    Lot {
        /// Of the lots.
        seed: u64,
    },
    /// A lot that it draws once: what stays is an even sample of everything that was ever written.
    Reservoir {
        /// Of the lots.
        seed: u64,
    },
}

/// Entries of a lane that no policy ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// So many of the oldest.
    pub sinks: u64,
    /// So many of the newest.
    pub recent: u64,
}

impl Worth {
    /// The name of its policy in Python and in files.
    pub fn name(&self) -> &'static str {
        match self {
            Worth::Age => "fifo",
            Worth::Update => "oldest_age",
            Worth::Recency => "lru",
            Worth::Hits { .. } => "lfu",
            Worth::Mass { .. } => "attention_mass",
            Worth::Retention { .. } => "retention",
            Worth::Score { .. } => "min_score",
            Worth::Lot { .. } => "random",
            Worth::Reservoir { .. } => "reservoir",
        }
    }
}

impl Evict {
    /// Its name in Python.
    pub fn name(&self) -> &'static str {
        match self {
            Evict::Error => "error",
            Evict::Fifo => "fifo",
            Evict::Least(worth, _) => worth.name(),
        }
    }

    /// Whether lanes note when entries were written and used, in files too: the policy asks.
    pub fn tracks(&self) -> bool {
        match self {
            Evict::Least(Worth::Score { decay, .. }, _) => *decay < 1.0,
            Evict::Least(worth, _) => !matches!(worth, Worth::Age | Worth::Lot { .. } | Worth::Reservoir { .. }),
            Evict::Error | Evict::Fifo => false,
        }
    }

    /// Whether it makes something of the use of entries, which somebody has to tell the bank.
    pub fn wants_use(&self) -> bool {
        self.tracks() && !matches!(self, Evict::Least(Worth::Score { .. } | Worth::Update, _))
    }

    /// Refuses what cannot be.
    fn check(&self, capacity: Option<u64>, columns: &[Declared]) -> Result<()> {
        let Evict::Least(worth, pins) = self else { return Ok(()) };
        let pinned = pins.sinks.saturating_add(pins.recent);
        ensure(capacity.is_none_or(|capacity| pinned < capacity), Kind::Argument, || {
            format!(
                "evict pins {pinned} entries, sinks and recent ones, of a capacity of {}: pin fewer, or raise capacity=",
                capacity.unwrap_or(0)
            )
        })?;
        let decays = |decay: f64| {
            ensure(decay > 0.0 && decay <= 1.0, Kind::Argument, || {
                format!("evict: decay={decay} must be above 0 and at most 1")
            })
        };
        match worth {
            Worth::Hits { decay } => decays(*decay),
            Worth::Mass { decay, pool } => {
                ensure(pool % 2 == 1, Kind::Argument, || format!("evict: pool={pool} must be an odd number"))?;
                decays(*decay)
            }
            Worth::Retention { strength } => ensure(*strength > 0.0 && strength.is_finite(), Kind::Argument, || {
                format!("evict: strength={strength} must be a positive number")
            }),
            Worth::Score { column, decay } => {
                let dtype = columns.iter().find(|declared| declared.name == *column).map(|declared| declared.dtype);
                ensure(dtype == Some(ColumnType::F32), Kind::Argument, || {
                    format!(
                        "evict names {column:?}: declare it as a float32 column, columns={{{column:?}: \"float32\"}}"
                    )
                })?;
                decays(*decay)
            }
            Worth::Age | Worth::Update | Worth::Recency | Worth::Lot { .. } | Worth::Reservoir { .. } => Ok(()),
        }
    }
}

/// A bank's fixed properties.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Key/value heads; every row has this many lanes.
    pub heads: usize,
    /// Numbers per key.
    pub key_dim: usize,
    /// Where values come from.
    pub values: Values,
    /// Live entries per lane at most.
    pub capacity: Option<u64>,
    /// What entries are ranked by.
    pub metric: Metric,
    /// None: the first write's type, bit for bit.
    pub key_codec: Option<Codec>,
    /// None: the first write's type, bit for bit.
    pub value_codec: Option<Codec>,
    /// None: first passes read the keys.
    pub scan_codec: Option<ScanCodec>,
    /// What becomes of tokens that are written.
    pub write: Write,
    /// What happens to a write beyond the capacity.
    pub evict: Evict,
    /// What to do about NaN and infinity where a call does not say.
    pub nonfinite: NonFinite,
    /// The caller's columns, beside id, label and position.
    pub columns: Vec<Declared>,
}

/// Widest key or value; keeps every size product far from overflow.
pub const MAX_DIM: usize = 1 << 16;

/// Most lanes of a bank.
pub const MAX_LANES: usize = 1 << 24;

impl Config {
    /// Numbers per value; 0 without values.
    pub fn value_dim(&self) -> usize {
        match self.values {
            Values::None => 0,
            Values::Key => self.key_dim,
            Values::Dim(dim) => dim,
        }
    }

    /// Whether lanes note when entries were written, merged into and used, in files too.
    pub fn tracks(&self) -> bool {
        self.evict.tracks() || self.write.merges()
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// When a number is outside its range, or rows times heads are too many.
    pub fn check(&self, rows: usize) -> Result<()> {
        let dim = |name: &str, dim: usize| {
            ensure((1..=MAX_DIM).contains(&dim), Kind::Argument, || format!("{name}={dim} must be from 1 to {MAX_DIM}"))
        };
        dim("key_dim", self.key_dim)?;
        if let Values::Dim(value_dim) = self.values {
            dim("value_dim", value_dim)?;
        }
        ensure(self.heads >= 1, Kind::Argument, || "heads=0 must be at least 1".into())?;
        ensure(self.capacity != Some(0), Kind::Argument, || "capacity=0 must be at least 1, or None".into())?;
        ensure(self.scan_codec.is_none() || self.metric != Metric::L2, Kind::Argument, || {
            "scan_codec=\"int8\" serves metric=\"dot\" and \"cos\": with \"l2\" expected None".into()
        })?;
        check_declared(&self.columns)?;
        self.evict.check(self.capacity, &self.columns)?;
        self.write.check(self)?;
        check_lanes(rows, self.heads)
    }
}

/// Refuses more lanes than a bank may have.
pub(crate) fn check_lanes(rows: usize, heads: usize) -> Result<()> {
    ensure(rows.checked_mul(heads).is_some_and(|n| n <= MAX_LANES), Kind::Argument, || {
        format!("rows={rows} times heads={heads} makes more than {MAX_LANES} lanes: use several banks")
    })
}
