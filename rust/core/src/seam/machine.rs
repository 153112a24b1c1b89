//! A bank beside its plain model, taking the same steps.

use mnemex_kernels::canonical::Metric;
use mnemex_oracle as oracle;
use proptest::prelude::*;

use super::agree::{agree, numbers};
use super::consolidate::Consolidate;
use super::pages::Pages;
use super::plain::{Entry, Landed, Plain, PlainRow, Token};
use crate::bank::{Bank, Snapshot};
use crate::codec::Codec;
use crate::commit::Receipt;
use crate::config::{Capacity, Config, Evict, NonFinite, ScanCodec, Values, Write};
use crate::evict::Fifo;
use crate::index::{Flat, Index};
use crate::input::Input;
use crate::labels::OnDuplicate;
use crate::stage::Tokens;
use crate::usage::Found;
use crate::version::Version;
use crate::work::Work;
use crate::write::{Append, WritePolicy};

pub(super) const HEADS: usize = 2;
pub(super) const KEY_DIM: usize = 5;
pub(super) const VALUE_DIM: usize = 3;

/// Rows beyond which a machine does not fork.
const MAX_ROWS: usize = 6;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Stage { rows: Vec<bool>, mask: Vec<bool>, sides: [bool; 2], on_duplicate: Option<OnDuplicate>, seed: u64 },
    Touch { row: usize, ids: Vec<i64>, mass: bool },
    Commit,
    Rollback,
    RollbackRow { row: usize, back: Option<i64> },
    DeleteLabels { row: usize, labels: Vec<i64> },
    Delete { row: usize, ids: Vec<i64> },
    Truncate { row: usize, end: i64 },
    Reset { row: usize },
    Reorder { index: Vec<usize> },
    Fork { repeats: usize },
    Snapshot,
    Copy,
    GoOnWithAnotherCopy,
}

/// `scale`: how many times longer calls are than a person could follow.
pub(super) fn step(scale: usize) -> impl Strategy<Value = Step> {
    let row = || 0..MAX_ROWS;
    let id = move || 0..60 * scale as i64;
    let mask = prop::collection::vec(prop::bool::weighted(0.8), 0..9 * scale);
    let on_duplicate = [None, Some(OnDuplicate::Raise), Some(OnDuplicate::Skip), Some(OnDuplicate::Replace)];
    let on_duplicate = prop::sample::select(on_duplicate.to_vec());
    prop_oneof![
        6 => (prop::collection::vec(any::<bool>(), MAX_ROWS), mask, any::<[bool; 2]>(), on_duplicate, any::<u64>())
            .prop_map(|(rows, mask, sides, on_duplicate, seed)| Step::Stage { rows, mask, sides, on_duplicate, seed }),
        1 => (row(), prop::collection::vec(-1..60 * scale as i64, 0..9), any::<bool>())
            .prop_map(|(row, ids, mass)| Step::Touch { row, ids, mass }),
        6 => Just(Step::Commit),
        2 => Just(Step::Rollback),
        3 => (row(), prop::option::of(0..9 * scale as i64)).prop_map(|(row, back)| Step::RollbackRow { row, back }),
        2 => (row(), prop::collection::vec(-1..6i64, 0..3)).prop_map(|(row, labels)| Step::DeleteLabels { row, labels }),
        2 => (row(), prop::collection::vec(id(), 0..5 * scale)).prop_map(|(row, ids)| Step::Delete { row, ids }),
        1 => (row(), id()).prop_map(|(row, end)| Step::Truncate { row, end }),
        1 => row().prop_map(|row| Step::Reset { row }),
        1 => prop::collection::vec(row(), 1..5).prop_map(|index| Step::Reorder { index }),
        1 => (1..4usize).prop_map(|repeats| Step::Fork { repeats }),
        2 => Just(Step::Snapshot),
        1 => Just(Step::Copy),
        1 => Just(Step::GoOnWithAnotherCopy),
    ]
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Ids per page; None: Flat.
    pub(super) pages: Option<i64>,
    pub(super) consolidate: bool,
    pub(super) capacity: Option<u64>,
    pub(super) codec: Codec,
    pub(super) metric: (Metric, oracle::Metric),
    pub(super) scan: Option<ScanCodec>,
}

impl Setting {
    pub(super) const PLAIN: Setting = Setting {
        pages: None,
        consolidate: false,
        capacity: None,
        codec: Codec::F32,
        metric: (Metric::Dot, oracle::Metric::Dot),
        scan: None,
    };
}

const METRICS: [(Metric, oracle::Metric); 3] =
    [(Metric::Dot, oracle::Metric::Dot), (Metric::Cos, oracle::Metric::Cos), (Metric::L2, oracle::Metric::L2)];

pub(super) fn setting(scale: u64) -> impl Strategy<Value = Setting> {
    let capacity = prop::sample::select(vec![Some(1), Some(4 * scale), Some(9 * scale), None]);
    let pages = prop::option::of(Just(7 * scale as i64));
    let (codec, metric) = (prop::sample::select(Codec::ALL.to_vec()), prop::sample::select(METRICS.to_vec()));
    (pages, any::<bool>(), capacity, codec, metric, any::<bool>()).prop_map(
        |(pages, consolidate, capacity, codec, metric, scan)| {
            let scan = (scan && metric.0 != Metric::L2).then_some(ScanCodec::Int8);
            Setting { pages, consolidate, capacity, codec, metric, scan }
        },
    )
}

/// The receipt tells of each token where the model has it.
fn landed_as(receipt: &Receipt, landed: &Landed) {
    let mut told = Landed::new();
    for (call, to) in receipt.ids.iter().zip(receipt.landed()) {
        let t = call.ids.len() / call.rows.len().max(1);
        for (at, to) in to.into_iter().enumerate() {
            let (i, head, token) = (at / t / HEADS, at / t % HEADS, at % t);
            match call.ids[i * t + token] {
                -1 => assert_eq!(to, -1),
                id => assert!(told.insert((call.rows[i], head, id), to).is_none()),
            }
        }
    }
    // The model names no replaced tokens.
    told.retain(|key, to| landed.contains_key(key) || *to != -1);
    assert_eq!(told, *landed);
}

pub(super) struct Machine {
    pub(super) bank: Bank,
    plain: Plain,
    held: Vec<(Snapshot, Plain)>,
    /// Copies that were left behind.
    copies: Vec<(Bank, Plain)>,
}

impl Machine {
    pub(super) fn new(setting: Setting) -> Machine {
        let index: Box<dyn Index> = match setting.pages {
            Some(size) => Box::new(Pages { size, newest_only: false }),
            None => Box::new(Flat),
        };
        Machine::with_index(setting, index, 2)
    }

    pub(super) fn with_index(setting: Setting, index: Box<dyn Index>, rows: usize) -> Machine {
        let config = Config {
            heads: HEADS,
            key_dim: KEY_DIM,
            values: Values::Dim(VALUE_DIM),
            capacity: setting.capacity.map(Capacity::Lane),
            metric: setting.metric.0,
            key_codec: Some(setting.codec),
            value_codec: Some(setting.codec),
            scan_codec: setting.scan,
            write: Write::Append,
            evict: Evict::Fifo,
            nonfinite: NonFinite::Raise,
            columns: Vec::new(),
        };
        let capacity = setting.capacity.map_or(usize::MAX, |capacity| capacity as usize);
        let threshold = 9.0;
        let write: Box<dyn WritePolicy> =
            if setting.consolidate { Box::new(Consolidate { threshold, capacity }) } else { Box::new(Append) };
        let bank =
            Bank::with_parts(config, Version::empty(rows, HEADS).unwrap(), index, write, Box::new(Fifo)).unwrap();
        let plain = Plain {
            rows: vec![PlainRow::empty(HEADS); rows],
            staged: vec![vec![]; rows],
            touched: Vec::new(),
            capacity,
            threshold: setting.consolidate.then_some(threshold),
            metric: setting.metric.1,
            codec: setting.codec,
        };
        Machine { bank, plain, held: Vec::new(), copies: Vec::new() }
    }

    fn take_rows(&mut self, index: &[usize]) {
        self.plain.rows = index.iter().map(|&row| self.plain.rows[row].clone()).collect();
        self.plain.staged = vec![vec![]; index.len()];
    }

    /// Takes one step on both sides. What has to raise while tokens are staged is passed over then.
    pub(super) fn step(&mut self, step: &Step) {
        let n = self.plain.rows.len();
        let quiet = !self.bank.has_staged();
        match step {
            Step::Stage { rows, mask, sides, on_duplicate, seed } => {
                self.stage(rows, mask, *sides, *on_duplicate, *seed);
            }
            Step::Touch { row, ids, mass } => self.touch(row % n, ids, *mass),
            Step::Commit => {
                let receipt = self.bank.commit(&Work::ALONE).unwrap();
                let (ended, landed) = self.plain.commit();
                assert_eq!(receipt.evicted, ended);
                landed_as(&receipt, &landed);
            }
            Step::Rollback => {
                self.bank.rollback();
                self.plain.staged.iter_mut().for_each(Vec::clear);
                self.plain.touched.clear();
            }
            Step::RollbackRow { row, back } => {
                let row = row % n;
                let end = back.map(|back| (self.plain.next_id(row) - back).max(0));
                self.bank.rollback_rows(Some(&[row]), end.as_ref().map(std::slice::from_ref)).unwrap();
                self.plain.staged[row].retain(|token| token.heads[0].id < end.unwrap_or(0));
                self.plain.touched.retain(|touch| end.is_some() || touch.0 != row);
            }
            Step::DeleteLabels { row, labels } => {
                self.bank.delete_named(&[], labels, Some(&[row % n]), &Work::ALONE).unwrap();
                let row = &mut self.plain.rows[row % n];
                let known = row.clone();
                row.keep(|id| known.label(id) == -1 || !labels.contains(&known.label(id)));
            }
            Step::Delete { row, ids } => {
                self.bank.delete(ids, Some(&[row % n])).unwrap();
                self.plain.rows[row % n].keep(|id| !ids.contains(&id));
            }
            Step::Truncate { row, end } if quiet => {
                self.bank.truncate(*end, Some(&[row % n])).unwrap();
                self.plain.rows[row % n].keep(|id| id < *end);
            }
            Step::Reset { row } if quiet => {
                self.bank.reset(Some(&[row % n])).unwrap();
                self.plain.rows[row % n].keep(|_| false);
            }
            Step::Reorder { index } if quiet => {
                let index: Vec<usize> = index.iter().map(|row| row % n).collect();
                self.bank.reorder(&index).unwrap();
                self.take_rows(&index);
            }
            Step::Fork { repeats } if quiet => {
                self.bank.fork(*repeats).unwrap();
                self.take_rows(&(0..n * repeats).map(|row| row / repeats).collect::<Vec<_>>());
                // Back to a number of rows that a test has time for.
                if n * repeats > MAX_ROWS {
                    self.step(&Step::Reorder { index: (0..MAX_ROWS).map(|row| row * repeats).collect() });
                }
            }
            Step::Snapshot => self.held.push((self.bank.snapshot(), self.plain.clone())),
            Step::Copy => {
                // What is staged stays with the original.
                let plain = Plain { staged: vec![vec![]; n], touched: Vec::new(), ..self.plain.clone() };
                let bank = self.bank.copy();
                self.copies.push((std::mem::replace(&mut self.bank, bank), std::mem::replace(&mut self.plain, plain)));
            }
            Step::GoOnWithAnotherCopy => {
                if let Some((bank, plain)) = self.copies.first_mut() {
                    std::mem::swap(bank, &mut self.bank);
                    std::mem::swap(plain, &mut self.plain);
                }
            }
            Step::Truncate { .. } | Step::Reset { .. } | Step::Reorder { .. } | Step::Fork { .. } => {}
        }
    }

    /// Stages the tokens of one call; the mask is shifted from row to row, so that rows differ in length.
    fn stage(
        &mut self,
        rows: &[bool],
        mask: &[bool],
        [labels, positions]: [bool; 2],
        on_duplicate: Option<OnDuplicate>,
        seed: u64,
    ) {
        let labels = labels || on_duplicate.is_some();
        let rows: Vec<usize> = (0..self.plain.rows.len()).filter(|&row| rows[row % rows.len()]).collect();
        let (n, t) = (rows.len(), mask.len());
        let (keys, values) = (numbers(seed, [n, HEADS, t, KEY_DIM]), numbers(!seed, [n, HEADS, t, VALUE_DIM]));
        let masks: Vec<bool> = (0..n * t).map(|at| mask[(at / t + at % t) % t]).collect();
        let labelled: Vec<i64> = (0..n * t).map(|at| (seed % 3) as i64 + at as i64 % 3 - 1).collect();
        let placed: Vec<i64> = labelled.iter().map(|label| label * 1000).collect();
        let tokens = Tokens {
            keys: Input::F32(keys.view()),
            values: Some(Input::F32(values.view())),
            rows: Some(&rows),
            mask: Some(&masks),
            labels: labels.then_some(&labelled),
            on_duplicate,
            positions: positions.then_some(&placed),
            columns: &[],
            nonfinite: None,
            one_lane: false,
        };
        let staged = self.bank.stage(&tokens, &Work::ALONE);
        let before = self.plain.staged.clone();
        for at in 0..n * t {
            let (i, token) = (at / t, at % t);
            let known = self.plain.labelled(rows[i], labelled[at]);
            let known = if on_duplicate.is_none() || labelled[at] == -1 { Vec::new() } else { known };
            if masks[at] && !known.is_empty() && on_duplicate == Some(OnDuplicate::Raise) {
                assert!(staged.is_err(), "label {} is there already", labelled[at]);
                self.plain.staged = before;
                return;
            }
            let unwritten = !masks[at] || (!known.is_empty() && on_duplicate == Some(OnDuplicate::Skip));
            let id = if unwritten { -1 } else { self.plain.next_id(rows[i]) };
            if let Ok(staged) = &staged {
                assert_eq!(staged.ids[at], id, "ids ascend without gaps and never come back");
            }
            if unwritten {
                continue;
            }
            let entry = |head: usize| {
                let vector = |x: &ndarray::Array4<f32>| x.slice(ndarray::s![i, head, token, ..]).to_vec();
                Entry { id, key: vector(&keys), value: vector(&values) }
            };
            self.plain.staged[rows[i]].push(Token {
                heads: (0..HEADS).map(entry).collect(),
                label: labels.then_some(labelled[at]),
                position: positions.then_some(placed[at]),
                replaces: known,
            });
        }
        assert!(staged.is_ok());
    }

    /// Touches ids in every head of a row; two query heads share each head.
    fn touch(&mut self, row: usize, ids: &[i64], with_mass: bool) {
        let every = ids.repeat(2 * HEADS);
        let mass: Vec<f64> = (0..every.len()).map(|at| at as f64 / 8.0).collect();
        let found = Found { rows: &[row], ids: &every, k: 1, heads: 2 * HEADS, mass: with_mass.then_some(&mass) };
        self.bank.touch(&found).unwrap();
        for (at, &id) in every.iter().enumerate() {
            let weight = if with_mass { mass[at] } else { 0.0 };
            self.plain.touched.push((row, at / ids.len() / 2, id, weight));
        }
        let touched = &self.plain.rows[row].heads;
        self.plain.touched.retain(|touch| touch.0 != row || touched[touch.1].iter().any(|entry| entry.id == touch.2));
    }

    /// The bank answers as its model does.
    pub(super) fn check(&self, seed: u64) {
        agree(&self.bank.snapshot(), &self.plain, seed);
    }

    /// So does every copy left behind and every snapshot held, each as its own model.
    pub(super) fn check_others(&self, seed: u64) {
        self.copies.iter().for_each(|(bank, plain)| agree(&bank.snapshot(), plain, seed));
        self.held.iter().for_each(|(snapshot, plain)| agree(snapshot, plain, seed));
    }

    /// The bank and every snapshot held have the ids that they should, and find them.
    pub(super) fn check_ids(&self) {
        let held = self.held.iter().map(|(snapshot, plain)| (snapshot.clone(), plain));
        for (snapshot, plain) in held.chain([(self.bank.snapshot(), &self.plain)]) {
            for (row, model) in snapshot.version.rows.iter().zip(&plain.rows) {
                for (lane, entries) in row.lanes.iter().zip(&model.heads) {
                    let ids: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
                    let mut live = lane.live_ids();
                    live.sort_unstable();
                    assert_eq!(live, ids);
                    assert_eq!(lane.len(), ids.len());
                    for n in [0, ids.len() / 3, ids.len().saturating_sub(1), ids.len()] {
                        assert_eq!(lane.nth_oldest(n), ids.get(n).copied());
                    }
                    for id in (0..row.next_id).step_by(37) {
                        let found = lane.locate(id).map(|(r, slot)| r.id(slot));
                        assert_eq!(found, ids.binary_search(&id).is_ok().then_some(id));
                    }
                }
            }
        }
    }

    /// Writes tokens to every row, all heads alike in number.
    pub(super) fn write(&mut self, n: usize, seed: u64) {
        self.stage(&[true], &vec![true; n], [false; 2], None, seed);
        self.step(&Step::Commit);
    }
}
