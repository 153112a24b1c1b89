//! What a bank is: fixed when it is made.

use mnemex_kernels::canonical::Metric;

use crate::cells::{Declared, check_declared};
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

/// What happens to a write beyond the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evict {
    /// The oldest entries go.
    Fifo,
    /// The write is refused.
    Error,
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
        check_lanes(rows, self.heads)
    }
}

/// Refuses more lanes than a bank may have.
pub(crate) fn check_lanes(rows: usize, heads: usize) -> Result<()> {
    ensure(rows.checked_mul(heads).is_some_and(|n| n <= MAX_LANES), Kind::Argument, || {
        format!("rows={rows} times heads={heads} makes more than {MAX_LANES} lanes: use several banks")
    })
}
