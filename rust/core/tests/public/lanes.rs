//! Short ways to make banks, fill them, ask them, and read everything out of them.

use mnemex_core::attend::{Attention, Partial};
use mnemex_core::bias::Bias;
use mnemex_core::config::{Evict, NonFinite, Values, Write};
use mnemex_core::gather::{Vectors, Wanted};
use mnemex_core::input::Input;
use mnemex_core::query::Query;
use mnemex_core::search::Hits;
use mnemex_core::stage::Tokens;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Config, Metric, Snapshot};
use mnemex_kernels::softmax::Logit;
use mnemex_kernels::{Isa, Kernels, convert};
use mnemex_oracle as oracle;
use ndarray::{Array4, s};

/// Each metric beside the oracle's.
pub(crate) const METRICS: [(Metric, oracle::Metric); 3] =
    [(Metric::Dot, oracle::Metric::Dot), (Metric::Cos, oracle::Metric::Cos), (Metric::L2, oracle::Metric::L2)];

pub(crate) fn every_table() -> impl Iterator<Item = &'static Kernels> {
    Isa::available().filter_map(Kernels::of)
}

pub(crate) fn config(metric: Metric, key_dim: usize, values: Values) -> Config {
    Config {
        heads: 1,
        key_dim,
        values,
        capacity: None,
        metric,
        key_codec: None,
        value_codec: None,
        scan_codec: None,
        write: Write::Append,
        evict: Evict::Fifo,
        nonfinite: NonFinite::Raise,
        columns: Vec::new(),
    }
}

/// Tokens of every row.
pub(crate) fn tokens<'a>(keys: &'a Array4<f32>, values: Option<&'a Array4<f32>>) -> Tokens<'a> {
    Tokens::of(Input::F32(keys.view()), values.map(|values| Input::F32(values.view())))
}

/// Writes tokens to every row, in commits of the given sizes.
pub(crate) fn write(
    bank: &Bank,
    keys: &Array4<f32>,
    values: Option<&Array4<f32>>,
    sizes: impl IntoIterator<Item = usize>,
) {
    let (mut first, n) = (0, keys.dim().2);
    for size in sizes {
        let part = first..n.min(first + size);
        let cut = |x: &Array4<f32>| x.slice(s![.., .., part.clone(), ..]).to_owned();
        let (keys, values) = (cut(keys), values.map(cut));
        bank.stage(&tokens(&keys, values.as_ref()), &Work::ALONE).unwrap();
        bank.commit(&Work::ALONE).unwrap();
        first = part.end;
    }
    assert_eq!(first, n, "the sizes cover every token");
}

pub(crate) fn ask(queries: &Array4<f32>) -> Query<'_> {
    Query::of(Input::F32(queries.view()))
}

/// What a search takes, the same whether small lanes are scanned or not.
pub(crate) fn search(snapshot: &Snapshot, query: &Query, k: usize, work: &Work) -> Hits {
    let hits = snapshot.search(query, k, work).unwrap();
    let scanned = snapshot.search(query, k, &Work { scan_small: true, ..*work }).unwrap();
    assert_eq!(bits(&hits.scores), bits(&scanned.scores));
    assert_eq!(hits, scanned);
    hits
}

pub(crate) fn attend(snapshot: &Snapshot, query: &Query, k: Option<usize>, work: &Work) -> Partial {
    let logit = Logit { scale: 0.5, softcap: None };
    snapshot
        .attend(query, &Attention { k: k.map(Into::into), logit, bias: Bias::None, with_hits: false }, work)
        .unwrap()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn floats(vectors: Vectors) -> Vec<f32> {
    match vectors {
        Vectors::F32(x) => x,
        Vectors::F16(halves) => {
            let mut x = vec![0.0; halves.len()];
            convert::widen_f16(&halves, &mut x);
            x
        }
    }
}

/// A live entry as `gather` gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) key: Vec<f32>,
    pub(crate) value: Vec<f32>,
}

/// The live entries of one lane, ids ascending.
pub(crate) fn entries(snapshot: &Snapshot, row: usize, head: usize) -> Vec<Entry> {
    let ids = snapshot.version().rows[row].lanes()[head].live_ids();
    let wanted = Wanted { rows: &vec![row; ids.len()], heads: &vec![head; ids.len()], ids: &ids };
    let (keys, values) = snapshot.gather(&wanted, &Work::ALONE).unwrap();
    let (keys, values) = (floats(keys), values.map_or(vec![], floats));
    let (dim, value_dim) = (snapshot.config().key_dim, snapshot.config().value_dim());
    let vector = |x: &[f32], at: usize, dim: usize| x[at * dim..][..dim].to_vec();
    let entry = |(at, &id)| Entry { id, key: vector(&keys, at, dim), value: vector(&values, at, value_dim) };
    ids.iter().enumerate().map(entry).collect()
}

/// Everything that can be read of a bank.
#[derive(Debug, PartialEq)]
pub(crate) struct Everything {
    number: u64,
    has_staged: bool,
    pub(crate) nbytes: usize,
    next_ids: Vec<i64>,
    lanes: Vec<Vec<Entry>>,
}

pub(crate) fn everything(bank: &Bank) -> Everything {
    let snapshot = bank.snapshot();
    let rows = &snapshot.version().rows;
    let lanes = (0..rows.len()).flat_map(|row| (0..bank.config().heads).map(move |head| (row, head)));
    Everything {
        number: snapshot.version().number,
        has_staged: bank.has_staged(),
        nbytes: bank.nbytes(),
        next_ids: rows.iter().map(|row| row.next_id()).collect(),
        lanes: lanes.map(|(row, head)| entries(&snapshot, row, head)).collect(),
    }
}
