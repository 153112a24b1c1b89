//! The parts that a bank is made of, by the names and numbers that Python gives.

use mnemex_core::config::{
    Adjacency, Beyond, Boundaries, Capacity, Clustering, Config, Conflicts, Consolidation, Evict, Merge, Paging, Pins,
    Representatives, ScanCodec, Weigh, Worth, Write,
};
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

/// Entries per lane: one number, or one for each head.
#[derive(FromPyObject, IntoPyObject)]
pub(crate) enum CapacityArgument {
    Lane(u64),
    Heads(Vec<u64>),
}

impl CapacityArgument {
    pub(crate) fn of(config: &Config) -> Option<CapacityArgument> {
        config.capacity.as_ref().map(|capacity| match capacity {
            Capacity::Lane(entries) => CapacityArgument::Lane(*entries),
            Capacity::Heads(each) => CapacityArgument::Heads(each.clone()),
        })
    }

    pub(crate) fn capacity(self) -> Capacity {
        match self {
            CapacityArgument::Lane(entries) => Capacity::Lane(entries),
            CapacityArgument::Heads(each) => Capacity::Heads(each),
        }
    }
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
    window: Option<u64>,
    #[pyo3(default)]
    strength: f64,
    #[pyo3(default)]
    column: String,
    #[pyo3(default)]
    seed: u64,
}

pub(crate) fn evict_named(name: &str, options: &EvictOptions) -> PyResult<Evict> {
    let EvictOptions { sinks, recent, decay, pool, window, strength, ref column, seed } = *options;
    let pins = Pins { sinks, recent };
    let worth = match name {
        "error" => return Ok(Evict::Error),
        "fifo" if pins == Pins::default() => return Ok(Evict::Fifo),
        "fifo" => Worth::Age,
        "oldest_age" => Worth::Update,
        "lru" => Worth::Recency,
        "lfu" => Worth::Hits { decay },
        "attention_mass" => Worth::Mass { decay, pool, window },
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

/// What a policy that merges takes, by name; what it does not take is left alone.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct WriteOptions {
    #[pyo3(default)]
    threshold: f64,
    #[pyo3(default)]
    similarity: String,
    #[pyo3(default)]
    merge: String,
    #[pyo3(default)]
    rate: f64,
    #[pyo3(default)]
    conflicts: String,
    #[pyo3(default)]
    n: u64,
    #[pyo3(default)]
    segment: Option<u64>,
    #[pyo3(default)]
    beyond: String,
    #[pyo3(default)]
    delta: f64,
    #[pyo3(default)]
    reservoir: u64,
    #[pyo3(default)]
    boundaries: String,
    #[pyo3(default)]
    surprise: f64,
    #[pyo3(default)]
    window: u64,
    #[pyo3(default)]
    shortest: u64,
    #[pyo3(default)]
    longest: u64,
    #[pyo3(default)]
    representatives: String,
    #[pyo3(default)]
    r: u64,
    seed: u64,
}

pub(crate) fn write_named(name: &str, options: Option<&WriteOptions>) -> PyResult<Write> {
    let options = match (name, options) {
        ("append", _) => return Ok(Write::Append),
        (_, Some(options)) => options,
        _ => return Err(unknown("write", name, "append, or a policy with its options")),
    };
    let similarity = || metric_named("similarity", &options.similarity);
    match name {
        "consolidate" => Ok(Write::Consolidate(Consolidation {
            threshold: options.threshold,
            similarity: similarity()?,
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
        })),
        "pages" => Ok(Write::Pages(Paging {
            boundaries: match options.boundaries.as_str() {
                "size" => Boundaries::Size,
                "column" => Boundaries::Column,
                "surprise" => Boundaries::Surprise { gamma: options.surprise, window: options.window },
                word => return Err(unknown("boundaries", word, "size, column, surprise")),
            },
            shortest: options.shortest,
            longest: options.longest,
            representatives: match options.representatives.as_str() {
                "mean" => Representatives::Mean,
                "last" => Representatives::Last,
                "best" => Representatives::Best(options.r),
                word => return Err(unknown("representatives", word, "mean, last, best")),
            },
        })),
        "merge_adjacent" => Ok(Write::MergeAdjacent(Adjacency {
            n: options.n,
            segment: options.segment,
            similarity: similarity()?,
            weigh: match options.merge.as_str() {
                "mean" => Weigh::Count,
                "midpoint" => Weigh::Equal,
                word => return Err(unknown("merge", word, "mean, midpoint")),
            },
            beyond: match options.beyond.as_str() {
                "evict" => Beyond::Evict,
                "merge" => Beyond::Merge,
                word => return Err(unknown("beyond", word, "evict, merge")),
            },
        })),
        "cluster" => {
            Ok(Write::Cluster(Clustering { delta: options.delta, reservoir: options.reservoir, seed: options.seed }))
        }
        _ => Err(unknown("write", name, "append, consolidate, merge_adjacent, cluster, pages")),
    }
}

pub(crate) fn metric_named(argument: &str, name: &str) -> PyResult<Metric> {
    match name {
        "dot" => Ok(Metric::Dot),
        "cos" => Ok(Metric::Cos),
        "l2" => Ok(Metric::L2),
        _ => Err(unknown(argument, name, "dot, cos, l2")),
    }
}
