//! The parts that a bank is made of, by the names and numbers that Python gives.

use mnemex_core::config::{Conflicts, Consolidation, Evict, Merge, Pins, ScanCodec, Worth, Write};
use mnemex_core::error::{Error, Kind};
use mnemex_core::{Codec, Metric};
use pyo3::prelude::*;

use crate::error::raised;

pub(crate) fn unknown(argument: &str, word: &str, known: &str) -> PyErr {
    raised(Error::new(Kind::Argument, format!("{argument}={word:?} is not known; expected one of {known}")))
}

pub(crate) fn codec_named(argument: &str, name: Option<&str>) -> PyResult<Option<Codec>> {
    let known = || Codec::ALL.map(Codec::name).join(", ");
    name.map(|name| Codec::named(name).ok_or_else(|| unknown(argument, name, &format!("auto, {}", known()))))
        .transpose()
}

pub(crate) fn scan_named(name: &str) -> PyResult<ScanCodec> {
    let known = ScanCodec::ALL.map(ScanCodec::name).join(", ");
    ScanCodec::named(name).ok_or_else(|| unknown("scan_codec", name, &format!("None, {known}")))
}

/// What a policy takes, by name; what it does not take is left alone.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct EvictOptions {
    sinks: u64,
    recent: u64,
    #[pyo3(default)]
    decay: f64,
    #[pyo3(default)]
    pool: usize,
    #[pyo3(default)]
    strength: f64,
    #[pyo3(default)]
    column: String,
    #[pyo3(default)]
    seed: u64,
}

pub(crate) fn evict_named(name: &str, options: &EvictOptions) -> PyResult<Evict> {
    let EvictOptions { sinks, recent, decay, pool, strength, ref column, seed } = *options;
    let pins = Pins { sinks, recent };
    let worth = match name {
        "error" => return Ok(Evict::Error),
        "fifo" if pins == Pins::default() => return Ok(Evict::Fifo),
        "fifo" => Worth::Age,
        "oldest_age" => Worth::Update,
        "lru" => Worth::Recency,
        "lfu" => Worth::Hits { decay },
        "attention_mass" => Worth::Mass { decay, pool },
        "retention" => Worth::Retention { strength },
        "min_score" => Worth::Score { column: column.clone(), decay },
        "random" => Worth::Lot { seed },
        "reservoir" => Worth::Reservoir { seed },
        _ => {
            let known = "error, fifo, oldest_age, lru, lfu, attention_mass, retention, min_score, random, reservoir";
            return Err(unknown("evict", name, known));
        }
    };
    Ok(Evict::Least(worth, pins))
}

/// What a policy that merges takes.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct WriteOptions {
    threshold: f64,
    similarity: String,
    merge: String,
    #[pyo3(default)]
    rate: f64,
    conflicts: String,
}

pub(crate) fn write_named(name: &str, options: Option<&WriteOptions>) -> PyResult<Write> {
    let options = match (name, options) {
        ("append", _) => return Ok(Write::Append),
        ("consolidate", Some(options)) => options,
        _ => return Err(unknown("write", name, "append, consolidate with its options")),
    };
    Ok(Write::Consolidate(Consolidation {
        threshold: options.threshold,
        similarity: metric_named("similarity", &options.similarity)?,
        merge: match options.merge.as_str() {
            "mean" => Merge::Mean,
            "ema" => Merge::Ema { rate: options.rate },
            word => return Err(unknown("merge", word, "mean, ema")),
        },
        conflicts: match options.conflicts.as_str() {
            "batch_mean" => Conflicts::BatchMean,
            "sequential" => Conflicts::Sequential,
            word => return Err(unknown("conflicts", word, "batch_mean, sequential")),
        },
    }))
}

pub(crate) fn metric_named(argument: &str, name: &str) -> PyResult<Metric> {
    match name {
        "dot" => Ok(Metric::Dot),
        "cos" => Ok(Metric::Cos),
        "l2" => Ok(Metric::L2),
        _ => Err(unknown(argument, name, "dot, cos, l2")),
    }
}
