//! Random histories of a bank beside its plain model.

use std::sync::Arc;

use mnemex_kernels::canonical::Metric;
use mnemex_kernels::softmax::Logit;
use mnemex_oracle as oracle;
use ndarray::Array4;
use proptest::prelude::*;

use super::consolidate::Consolidate;
use super::pages::Pages;
use super::plain::{Plain, PlainRow, Token};
use crate::attend::Attention;
use crate::bank::{Bank, Snapshot};
use crate::codec::Codec;
use crate::config::{Config, Evict, NonFinite, Values};
use crate::evict::Fifo;
use crate::gather::{Vectors, Wanted};
use crate::index::{Flat, Index};
use crate::input::Input;
use crate::query::Query;
use crate::stage::Tokens;
use crate::version::Version;
use crate::work::Work;
use crate::write::{Append, WritePolicy};

const HEADS: usize = 2;
const KEY_DIM: usize = 5;
const VALUE_DIM: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Stage { rows: Vec<bool>, mask: Vec<bool>, seed: u64 },
    Commit,
    Rollback,
    Delete { row: usize, ids: Vec<i64> },
    Truncate { row: usize, end: i64 },
    Reset { row: usize },
    Reorder { index: Vec<usize> },
    Fork,
    Snapshot,
    Copy,
}

fn step() -> impl Strategy<Value = Step> {
    let mask = prop::collection::vec(prop::bool::weighted(0.8), 0..9);
    prop_oneof![
        6 => (prop::collection::vec(any::<bool>(), 4), mask, any::<u64>())
            .prop_map(|(rows, mask, seed)| Step::Stage { rows, mask, seed }),
        6 => Just(Step::Commit),
        1 => Just(Step::Rollback),
        2 => (0..4usize, prop::collection::vec(0..60i64, 0..5)).prop_map(|(row, ids)| Step::Delete { row, ids }),
        1 => (0..4usize, 0..60i64).prop_map(|(row, end)| Step::Truncate { row, end }),
        1 => (0..4usize).prop_map(|row| Step::Reset { row }),
        1 => prop::collection::vec(0..4usize, 1..5).prop_map(|index| Step::Reorder { index }),
        1 => Just(Step::Fork),
        2 => Just(Step::Snapshot),
        1 => Just(Step::Copy),
    ]
}

/// Whole numbers: exact in every codec, and many of them equal.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let next = |x: &mut u64| {
        *x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(((*x >> 33) % 7) as f32 - 3.0)
    };
    std::iter::successors(Some(seed), |x| Some(x.wrapping_add(0x9E37_79B9)))
        .take(n)
        .filter_map(|mut x| next(&mut x))
        .collect()
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    pages: bool,
    consolidate: bool,
    capacity: usize,
    codec: Codec,
    metric: usize,
}

const METRICS: [(Metric, oracle::Metric); 3] =
    [(Metric::Dot, oracle::Metric::Dot), (Metric::Cos, oracle::Metric::Cos), (Metric::L2, oracle::Metric::L2)];

fn setting() -> impl Strategy<Value = Setting> {
    (any::<bool>(), any::<bool>(), prop::sample::select(vec![1usize, 4, 9, 1000]), 0..3usize, 0..3usize).prop_map(
        |(pages, consolidate, capacity, codec, metric)| Setting {
            pages,
            consolidate,
            capacity,
            // A running mean leaves what half precisions can hold.
            codec: if consolidate { Codec::F32 } else { Codec::ALL[codec] },
            metric,
        },
    )
}

struct Machine {
    bank: Bank,
    plain: Plain,
    held: Vec<(Snapshot, Plain)>,
}

impl Machine {
    fn new(setting: Setting) -> Machine {
        let config = Config {
            heads: HEADS,
            key_dim: KEY_DIM,
            values: Values::Dim(VALUE_DIM),
            capacity: Some(setting.capacity as u64),
            metric: METRICS[setting.metric].0,
            key_codec: Some(setting.codec),
            value_codec: Some(Codec::F32),
            evict: Evict::Fifo,
            nonfinite: NonFinite::Raise,
        };
        let index: Box<dyn Index> =
            if setting.pages { Box::new(Pages { size: 7, newest_only: false }) } else { Box::new(Flat) };
        let threshold = 9.0;
        let write: Box<dyn WritePolicy> = if setting.consolidate {
            Box::new(Consolidate { threshold, capacity: setting.capacity })
        } else {
            Box::new(Append)
        };
        let bank = Bank::with_parts(config, Version::empty(2, HEADS), index, write, Box::new(Fifo)).unwrap();
        let row = PlainRow { heads: vec![vec![]; HEADS], next_id: 0 };
        let plain = Plain {
            rows: vec![row; 2],
            staged: vec![vec![]; 2],
            capacity: setting.capacity,
            threshold: setting.consolidate.then_some(threshold),
            metric: METRICS[setting.metric].1,
        };
        Machine { bank, plain, held: Vec::new() }
    }

    fn quiet(&self) -> bool {
        !self.bank.has_staged()
    }

    fn step(&mut self, step: &Step) {
        let n = self.plain.rows.len();
        match step {
            Step::Stage { rows, mask, seed } => self.stage(rows, mask, *seed),
            Step::Commit => {
                self.bank.commit(&Work::ALONE).unwrap();
                self.plain.commit();
            }
            Step::Rollback => {
                self.bank.rollback();
                self.plain.staged.iter_mut().for_each(Vec::clear);
            }
            Step::Delete { row, ids } => {
                let row = row % n;
                self.bank.delete(ids, Some(&[row])).unwrap();
                self.plain.rows[row].heads.iter_mut().for_each(|lane| lane.retain(|entry| !ids.contains(&entry.0)));
            }
            Step::Truncate { row, end } if self.quiet() => {
                self.bank.truncate(*end, Some(&[row % n])).unwrap();
                self.plain.rows[row % n].heads.iter_mut().for_each(|lane| lane.retain(|entry| entry.0 < *end));
            }
            Step::Reset { row } if self.quiet() => {
                self.bank.reset(Some(&[row % n])).unwrap();
                self.plain.rows[row % n].heads.iter_mut().for_each(Vec::clear);
            }
            Step::Reorder { index } if self.quiet() => {
                let index: Vec<usize> = index.iter().map(|row| row % n).collect();
                self.bank.reorder(&index).unwrap();
                self.plain.rows = index.iter().map(|&row| self.plain.rows[row].clone()).collect();
                self.plain.staged = vec![vec![]; index.len()];
            }
            Step::Fork if self.quiet() && n < 4 => {
                self.bank.fork(2).unwrap();
                self.plain.rows = self.plain.rows.iter().flat_map(|row| [row.clone(), row.clone()]).collect();
                self.plain.staged = vec![vec![]; 2 * n];
            }
            Step::Snapshot => {
                let frozen = Plain { staged: vec![vec![]; n], ..self.plain.clone() };
                self.held.push((self.bank.snapshot(), frozen));
            }
            Step::Copy if self.quiet() => self.bank = self.bank.copy(),
            _ => {}
        }
    }

    fn stage(&mut self, rows: &[bool], mask: &[bool], seed: u64) {
        let rows: Vec<usize> = (0..self.plain.rows.len()).filter(|&row| rows[row % rows.len()]).collect();
        let (n, t) = (rows.len(), mask.len());
        let keys = Array4::from_shape_vec((n, HEADS, t, KEY_DIM), numbers(seed, n * HEADS * t * KEY_DIM)).unwrap();
        let values =
            Array4::from_shape_vec((n, HEADS, t, VALUE_DIM), numbers(!seed, n * HEADS * t * VALUE_DIM)).unwrap();
        let masks: Vec<bool> = mask.repeat(n);
        let tokens = Tokens {
            keys: Input::F32(keys.view()),
            values: Some(Input::F32(values.view())),
            rows: Some(&rows),
            mask: Some(&masks),
            labels: None,
            positions: None,
            nonfinite: None,
        };
        let staged = self.bank.stage(&tokens, &Work::ALONE).unwrap();
        for (i, &row) in rows.iter().enumerate() {
            for at in 0..t {
                let id = staged.ids[i * t + at];
                if !mask[at] {
                    assert_eq!(id, -1);
                    continue;
                }
                assert_eq!(id, self.plain.next_id(row), "ids ascend without gaps and never come back");
                let vector = |x: &Array4<f32>, head: usize| (0..x.dim().3).map(|d| x[[i, head, at, d]]).collect();
                let token: Token = (id, (0..HEADS).map(|head| (vector(&keys, head), vector(&values, head))).collect());
                self.plain.staged[row].push(token);
            }
        }
    }

    fn check(&self, seed: u64) {
        agree(&self.bank.snapshot(), &self.plain, seed);
        self.held.iter().for_each(|(snapshot, plain)| agree(snapshot, plain, seed));
    }
}

/// Every read of a version equals the plain model's.
fn agree(snapshot: &Snapshot, plain: &Plain, seed: u64) {
    let n = plain.rows.len();
    let lengths: Vec<Vec<usize>> = plain.rows.iter().map(|row| row.heads.iter().map(Vec::len).collect()).collect();
    assert_eq!(snapshot.lengths(), lengths);
    let queries = Array4::from_shape_vec((n, HEADS, 2, KEY_DIM), numbers(seed, n * HEADS * 2 * KEY_DIM)).unwrap();
    let query = Query { queries: Input::F32(queries.view()), rows: None, before: None, allowed: None, nonfinite: None };
    for k in [1, 3, 50] {
        let hits = snapshot.search(&query, k, &Work::ALONE).unwrap();
        let parts = [Some(k), None].map(|k| {
            let logit = Logit { scale: 0.5, softcap: None };
            snapshot.attend(&query, &Attention { k, logit, with_hits: false }, &Work::ALONE).unwrap()
        });
        for at in 0..n * HEADS * 2 {
            let (row, head, t) = (at / (2 * HEADS), at / 2 % HEADS, at % 2);
            let q: Vec<f32> = (0..KEY_DIM).map(|d| queries[[row, head, t, d]]).collect();
            let mut want = plain.search(row, head, &q, k);
            want.resize(k, (f32::NEG_INFINITY, -1));
            let got: Vec<_> = (at * k..(at + 1) * k).map(|i| (hits.scores[i], hits.ids[i])).collect();
            assert_eq!(got, want);
            for (part, k) in parts.iter().zip([k, usize::MAX]) {
                let (out, lse) = plain.attend(row, head, &q, k, VALUE_DIM);
                assert!(part.lse[at] == lse as f32 || (f64::from(part.lse[at]) - lse).abs() < 1e-5 * (1.0 + lse.abs()));
                let got = &part.out[at * VALUE_DIM..][..VALUE_DIM];
                assert!(got.iter().zip(&out).all(|(a, b)| (f64::from(*a) - b).abs() < 5e-5), "{got:?} for {out:?}");
            }
        }
    }
    for (row, heads) in plain.rows.iter().map(|row| &row.heads).enumerate() {
        for (head, entries) in heads.iter().enumerate() {
            let ids: Vec<i64> = entries.iter().map(|entry| entry.0).collect();
            let wanted = Wanted { rows: &vec![row; ids.len()], heads: &vec![head; ids.len()], ids: &ids };
            let (keys, values) = snapshot.gather(&wanted, &Work::ALONE).unwrap();
            let floats = |x| match x {
                Vectors::F32(x) => x,
                Vectors::F16(bits) => bits.iter().map(|&b| widen(b)).collect(),
            };
            assert_eq!(floats(keys), entries.iter().flat_map(|entry| entry.1.clone()).collect::<Vec<_>>());
            assert_eq!(floats(values.unwrap()), entries.iter().flat_map(|entry| entry.2.clone()).collect::<Vec<_>>());
        }
    }
}

fn widen(bits: u16) -> f32 {
    let mut x = [0.0];
    mnemex_kernels::convert::widen_f16(&[bits], &mut x);
    x[0]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bank_of_any_parts_agrees_with_plain_vectors(
        setting in setting(),
        steps in prop::collection::vec(step(), 1..40),
        seed in any::<u64>(),
    ) {
        let mut machine = Machine::new(setting);
        for (i, step) in steps.iter().enumerate() {
            machine.step(step);
            if i % 4 == 3 {
                machine.check(seed);
            }
        }
        machine.check(!seed);
    }
}

fn filled(n: usize) -> Machine {
    let mut machine =
        Machine::new(Setting { pages: false, consolidate: false, capacity: 1 << 20, codec: Codec::F32, metric: 0 });
    for seed in 0..n as u64 / 100 {
        machine.stage(&[true], &[true; 100], seed);
        machine.step(&Step::Commit);
    }
    machine
}

#[test]
fn eight_beams_cost_eight_tails() {
    let mut machine = filled(10_000);
    let one = machine.bank.nbytes();
    for _ in 0..3 {
        machine.bank.fork(2).unwrap();
        machine.plain.rows = machine.plain.rows.iter().flat_map(|row| [row.clone(), row.clone()]).collect();
        machine.plain.staged = vec![vec![]; machine.plain.rows.len()];
    }
    machine.stage(&[true], &[true], 5);
    machine.step(&Step::Commit);
    let grown = machine.bank.nbytes() as f64 / one as f64;
    assert!(grown < 1.2, "8 beams take {grown:.2} times the memory of one");
}

#[test]
fn a_block_is_copied_only_where_a_snapshot_holds_it() {
    let mut machine = filled(1_000);
    let last_block = |bank: &Bank| {
        let version = bank.snapshot().version;
        Arc::as_ptr(&version.rows[0].lanes[0].lists()[0].refs().last().unwrap().block)
    };
    let before = last_block(&machine.bank);
    machine.stage(&[true], &[true], 5);
    machine.step(&Step::Commit);
    assert_eq!(before, last_block(&machine.bank));
    let held = machine.bank.snapshot();
    machine.stage(&[true], &[true], 6);
    machine.step(&Step::Commit);
    assert_ne!(before, last_block(&machine.bank));
    assert_eq!(held.lengths()[0][0] + 1, machine.bank.snapshot().lengths()[0][0]);
}

#[test]
fn an_index_that_looks_at_one_list_finds_only_what_is_there() {
    let config = Machine::new(Setting { pages: true, consolidate: false, capacity: 99, codec: Codec::F32, metric: 0 });
    let config = config.bank.config().clone();
    let pages = Pages { size: 10, newest_only: true };
    let bank =
        Bank::with_parts(config, Version::empty(1, HEADS), Box::new(pages), Box::new(Append), Box::new(Fifo)).unwrap();
    let plain =
        Machine::new(Setting { pages: false, consolidate: false, capacity: 99, codec: Codec::F32, metric: 0 }).plain;
    let mut machine = Machine { bank, plain: Plain { rows: plain.rows[..1].to_vec(), ..plain }, held: vec![] };
    machine.stage(&[true], &[true; 25], 1);
    machine.bank.commit(&Work::ALONE).unwrap();
    let queries = Array4::from_elem((1, HEADS, 1, KEY_DIM), 1.0f32);
    let query = Query { queries: Input::F32(queries.view()), rows: None, before: None, allowed: None, nonfinite: None };
    let hits = machine.bank.snapshot().search(&query, 25, &Work::ALONE).unwrap();
    assert!(hits.ids.iter().all(|&id| id == -1 || id >= 20));
    assert_eq!(hits.ids.iter().filter(|&&id| id >= 20).count(), HEADS * 5);
}
