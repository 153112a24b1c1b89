//! What a bank is: fixed when it is made.

use mnemex_kernels::canonical::Metric;

pub use crate::capacity::Capacity;
use crate::cells::{ColumnType, Declared, check_declared};
use crate::codec::Codec;
use crate::error::{Kind, Result, ensure};
pub use crate::write::how::{
    Adjacency, Beyond, COUNT, Clustering, Conflicts, Consolidation, LOG_WEIGHT, Merge, Weigh, Write,
};
pub use crate::write::pages::{Boundaries, Paging, Representatives};

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
        /// Only what was told in so many of the last commits; then nothing fades.
        window: Option<u64>,
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
    fn check(&self, capacity: Option<&Capacity>, columns: &[Declared]) -> Result<()> {
        let Evict::Least(worth, pins) = self else { return Ok(()) };
        let pinned = pins.sinks.saturating_add(pins.recent);
        let least = capacity.map(Capacity::least);
        ensure(least.is_none_or(|least| pinned < least), Kind::Argument, || {
            format!(
                "evict pins {pinned} entries, sinks and recent ones, of a capacity of {}: pin fewer, or raise capacity=",
                least.unwrap_or(0)
            )
        })?;
        let decays = |decay: f64| {
            ensure(decay > 0.0 && decay <= 1.0, Kind::Argument, || {
                format!("evict: decay={decay} must be above 0 and at most 1")
            })
        };
        match worth {
            Worth::Hits { decay } => decays(*decay),
            Worth::Mass { decay, pool, window } => {
                ensure(window.is_none_or(|window| window > 0 && *decay == 1.0), Kind::Argument, || {
                    format!("evict: window={} must be at least 1, with a decay of 1", window.unwrap_or(0))
                })?;
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
    pub capacity: Option<Capacity>,
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
        self.capacity.as_ref().map_or(Ok(()), |capacity| capacity.check(self.heads))?;
        ensure(self.scan_codec.is_none() || self.metric != Metric::L2, Kind::Argument, || {
            "scan_codec=\"int8\" serves metric=\"dot\" and \"cos\": with \"l2\" expected None".into()
        })?;
        check_declared(&self.columns)?;
        self.evict.check(self.capacity.as_ref(), &self.columns)?;
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
