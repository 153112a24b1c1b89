//! What is added to logits, after the softcap: a number per query head, or a number of each entry's own.
//!
//! A number per head is the same for everything that a query weighs, so it moves the log-sum-exp and nothing else. It
//! never changes which entries are taken: those are the ones that search takes.

use crate::bank::Snapshot;
use crate::cells::{ColumnType, Declared};
use crate::columns::AnyColumn;
use crate::config::{LOG_WEIGHT, Write};
use crate::error::{Error, Kind, Result, ensure};
use crate::lane::Lane;
use crate::predicate::unknown;
use crate::version::Row;

/// What is added to the logits of an attend. Minus infinity: no weight.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a> {
    /// Nothing.
    #[default]
    None,
    /// A number for each query head.
    Heads(&'a [f32]),
    /// The numbers of a float32 column, the weights of what a write policy merged included.
    Column(&'a str),
}

/// A column that is added to logits.
pub(crate) enum ColumnBias {
    /// One of the caller's.
    Own {
        at: usize,
        name: String,
        /// Whether NaN and plus infinity are refused; they make the answer NaN otherwise.
        refuse: bool,
    },
    /// What entries of each lane weigh, since tokens were merged into them.
    Weight(Write),
}

/// A logit and what is added to it; minus infinity takes every weight away, that of an infinite logit too.
#[inline(always)]
pub(crate) fn biased(logit: f32, bias: f32) -> f32 {
    if bias == f32::NEG_INFINITY { bias } else { logit + bias }
}

impl Bias<'_> {
    /// Refuses what cannot be added; the column, if it is one.
    pub(crate) fn check(&self, snapshot: &Snapshot, heads: usize, refuse: bool) -> Result<Option<ColumnBias>> {
        match self {
            Bias::None => Ok(None),
            Bias::Heads(numbers) => {
                ensure(numbers.len() == heads, Kind::Shape, || {
                    format!("bias has {} numbers for {heads} query heads: give one per query head", numbers.len())
                })?;
                let bad = numbers.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
                bad.map_or(Ok(None), |head| {
                    let message = format!("bias of query head {head} is {}: give a number, or -inf", numbers[head]);
                    Err(Error::new(Kind::NonFinite, message))
                })
            }
            Bias::Column(LOG_WEIGHT) if snapshot.config().write.merges() => {
                Ok(Some(ColumnBias::Weight(snapshot.config().write.clone())))
            }
            Bias::Column(name) => ColumnBias::named(&snapshot.config().columns, name, refuse).map(Some),
        }
    }
}

impl ColumnBias {
    fn named(declared: &[Declared], name: &str, refuse: bool) -> Result<ColumnBias> {
        let dtype = match name {
            "id" | "label" | "position" => Some(ColumnType::I64),
            _ => declared.iter().find(|declared| declared.name == name).map(|declared| declared.dtype),
        };
        let dtype = dtype.ok_or_else(|| unknown("bias", declared, name))?;
        let at = declared.iter().position(|declared| declared.name == name && dtype == ColumnType::F32);
        let at = at.ok_or_else(|| {
            Error::new(
                Kind::Dtype,
                format!("bias names {name:?}, a column of {}; logits take float32 columns", dtype.name()),
            )
        })?;
        Ok(ColumnBias::Own { at, name: name.to_owned(), refuse })
    }

    /// What is added to the logits of entries.
    pub(crate) fn of(&self, (row, lane): (&Row, &Lane), ids: &[i64]) -> Result<Vec<f32>> {
        let (at, name, refuse) = match self {
            ColumnBias::Weight(write) => return Ok(ids.iter().map(|&id| write.log_weight(lane, id)).collect()),
            ColumnBias::Own { at, name, refuse } => (*at, name, *refuse),
        };
        let biases: Vec<f32> = match row.columns.get(at) {
            Some(AnyColumn::F32(column)) => match run(ids).and_then(|n| column.run(ids[0], n)) {
                Some(run) => run.to_vec(),
                None => ids.iter().map(|&id| column.get(id)).collect(),
            },
            _ => vec![0.0; ids.len()],
        };
        let bad = |bias: &f32| bias.is_nan() || *bias == f32::INFINITY;
        match biases.iter().position(bad).filter(|_| refuse) {
            None => Ok(biases),
            Some(at) => {
                let (bias, id) = (biases[at], ids[at]);
                let message = format!(
                    "bias: the column {name:?} has {bias} at id {id}: leave that entry out with where=, or write a number \
                     or -inf"
                );
                Err(Error::new(Kind::NonFinite, message))
            }
        }
    }
}

/// How many ids there are, if they follow one another.
fn run(ids: &[i64]) -> Option<usize> {
    Some(ids.len()).filter(|&n| n > 0 && ids.iter().zip(ids[0]..).all(|(&id, next)| id == next))
}
