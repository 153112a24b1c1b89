//! Labels as keys: what a write does about a label that its row has already, and the index that finds such labels.
//!
//! The index is derived: it is made when a row is first asked, outside of any version, and grows with the row's ids. It
//! may name entries that have ended, since ids are never used again, and every answer is looked up in the row; so nothing
//! that ends entries needs to tell it. Only what takes staged ids back does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::error::{Error, Kind, Result, room_for};
use crate::lane::Lane;
use crate::stage::{StagedRow, Staging, Tokens};
use crate::version::{Row, Version};
use crate::work::{Ticker, Work};

/// The label of an entry that was given none; it is never a duplicate.
pub(crate) const NO_LABEL: i64 = -1;

/// What a write does about a label that a live or staged entry of the row has, or an earlier token of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDuplicate {
    /// Refuse the call.
    Raise,
    /// Leave the token unwritten.
    Skip,
    /// End every entry with that label at commit, and write the token.
    Replace,
}

/// Bytes that one number pair takes in a tree, nodes two thirds full.
const PAIR_BYTES: usize = 24;

/// Pairs of an index that are not worth a sweep.
const FEW: usize = 1024;

/// The ids of each label of a row, with those of ended and of replaced entries until they are met or swept.
#[derive(Default)]
pub(crate) struct LabelIndex {
    pairs: BTreeSet<(i64, i64)>,
    /// Every labelled entry with a smaller id, unless a staged token replaces it, is in `pairs`; None before the first
    /// use.
    end: Option<i64>,
    /// Pairs at which those of ended entries are swept out.
    sweep_at: usize,
}

/// A row as the next write will find it: its entries and what is staged.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    pub(crate) row: &'a Row,
    pub(crate) staged: Option<&'a StagedRow>,
}

impl Held<'_> {
    /// One past the largest id.
    fn end(&self) -> i64 {
        self.staged.map_or(self.row.next_id, StagedRow::end)
    }

    /// Whether the id is staged, or live in any head.
    fn has(&self, id: i64) -> bool {
        let staged = self.staged.is_some_and(|staged| (staged.id_lo..staged.end()).contains(&id));
        staged || self.row.lanes.iter().any(|lane| lane.locate(id).is_some())
    }

    /// Whether a staged token replaces the entry.
    fn is_replaced(&self, id: i64) -> bool {
        self.staged.is_some_and(|staged| staged.replaced.contains_key(&id))
    }

    fn label(&self, id: i64) -> i64 {
        match self.staged {
            Some(staged) if id >= staged.id_lo => staged.label(id),
            _ => self.row.label(id),
        }
    }
}

impl LabelIndex {
    /// Takes in the labels of ids that it does not cover yet: all of a row at first, later what was written since.
    ///
    /// # Errors
    /// When the caller interrupts or memory is short; what was taken in until then stays, and is right.
    pub(crate) fn catch_up(&mut self, held: Held, ticker: &Ticker) -> Result<()> {
        let labelled = |id: i64| Some((held.label(id), id)).filter(|&(l, id)| l != NO_LABEL && !held.is_replaced(id));
        if self.end.is_none() {
            // Ids may lie far apart here: only live ones are asked.
            let mut ids: Vec<i64> = held.row.lanes.iter().flat_map(Lane::live_ids).collect();
            ids.sort_unstable();
            ids.dedup();
            let mut pairs = Vec::new();
            for id in ids {
                ticker.tick()?;
                pairs.extend(labelled(id));
            }
            room_for(pairs.len() * (PAIR_BYTES + 16), || format!("the index of {} labels", pairs.len()))?;
            self.pairs = pairs.into_iter().collect();
            self.sweep_at = 2 * self.pairs.len() + FEW;
            self.end = Some(held.row.next_id);
        }
        for id in self.end.unwrap_or(0)..held.end() {
            ticker.tick()?;
            self.pairs.extend(labelled(id));
            self.end = Some(id + 1);
        }
        if self.pairs.len() > self.sweep_at {
            self.pairs.retain(|&(_, id)| ticker.tick().is_err() || held.has(id));
            ticker.tick()?;
            self.sweep_at = 2 * self.pairs.len() + FEW;
        }
        Ok(())
    }

    /// The entries with a label, ascending, without replaced ones. The index must have caught up.
    pub(crate) fn ids(&mut self, label: i64, held: Held) -> Vec<i64> {
        let all: Vec<i64> = self.pairs.range((label, i64::MIN)..=(label, i64::MAX)).map(|&(_, id)| id).collect();
        let (there, gone): (Vec<i64>, Vec<i64>) =
            all.into_iter().partition(|&id| held.has(id) && !held.is_replaced(id));
        gone.into_iter().for_each(|id| _ = self.pairs.remove(&(label, id)));
        there
    }

    /// The entries with any of the labels, replaced ones too, in any order.
    ///
    /// # Errors
    /// When the caller interrupts, or memory is short.
    pub(crate) fn named(&mut self, labels: &[i64], held: Held, ticker: &Ticker) -> Result<Vec<i64>> {
        self.catch_up(held, ticker)?;
        let wanted: HashSet<i64> = labels.iter().copied().collect();
        let replaced = held.staged.iter().flat_map(|staged| staged.replaced.keys().copied());
        let mut ids: Vec<i64> = replaced.filter(|&id| wanted.contains(&held.label(id))).collect();
        for &label in labels {
            ticker.tick()?;
            ids.extend(self.ids(label, held));
        }
        Ok(ids)
    }

    /// Forgets staged ids of `end` or more, which are about to be taken back and given again; what they were to replace is
    /// back.
    pub(crate) fn take_back(&mut self, staged: &StagedRow, end: i64) {
        let end = end.max(staged.id_lo);
        for id in end..staged.end() {
            self.pairs.remove(&(staged.label(id), id));
        }
        for (&id, &by) in staged.replaced.iter().filter(|&(&id, &by)| by >= end && id < end) {
            self.pairs.insert((staged.label(by), id));
        }
        self.end = self.end.map(|all| all.min(end));
    }

    /// Bytes of memory, about.
    pub(crate) fn nbytes(&self) -> usize {
        self.pairs.len() * PAIR_BYTES
    }
}

/// What a row's tokens replace: the entry that goes, and the id of the token that takes its place.
pub(crate) type Replaced = BTreeMap<i64, i64>;

impl Staging {
    /// Applies `on_duplicate` to the tokens that are to be written, row by row, as if they came one after another.
    /// Skipped ones are taken out of `written`; returns what each row's tokens replace.
    pub(crate) fn settle_duplicates(
        &mut self,
        version: &Version,
        rows: &[usize],
        tokens: &Tokens,
        written: &mut [Vec<usize>],
        work: &Work,
    ) -> Result<Vec<Replaced>> {
        let Some(how) = tokens.on_duplicate else { return Ok(vec![Replaced::new(); rows.len()]) };
        let given = tokens.labels.ok_or_else(|| {
            Error::new(Kind::Argument, "on_duplicate= compares labels, and labels are missing: give labels= too")
        })?;
        let n_tokens = tokens.keys.shape()[2];
        work.once(|ticker| {
            let each = rows.iter().zip(written).enumerate().map(|(at, (&row, written))| {
                let held = Held { row: &version.rows[row], staged: self.rows.get(&row) };
                let index = self.label_index.entry(row).or_default();
                index.catch_up(held, ticker)?;
                settle(index, held, how, (row, &given[at * n_tokens..][..n_tokens]), written, ticker)
            });
            each.collect()
        })
    }
}

fn settle(
    index: &mut LabelIndex,
    held: Held,
    how: OnDuplicate,
    (row, labels): (usize, &[i64]),
    written: &mut Vec<usize>,
    ticker: &Ticker,
) -> Result<Replaced> {
    let mut replaced = Replaced::new();
    // The newest token of the call with a label, and its id.
    let mut newest: HashMap<i64, (usize, i64)> = HashMap::new();
    let (mut kept, mut id) = (Vec::with_capacity(written.len()), held.end());
    for &t in &*written {
        ticker.tick()?;
        let label = labels[t];
        if label != NO_LABEL {
            let before = newest.get(&label).copied();
            let there = if before.is_some() { Vec::new() } else { index.ids(label, held) };
            match how {
                OnDuplicate::Raise => refuse_duplicate(row, t, label, before, &there)?,
                OnDuplicate::Skip if before.is_some() || !there.is_empty() => continue,
                OnDuplicate::Skip => {}
                OnDuplicate::Replace => {
                    replaced.extend(before.map(|(_, earlier)| earlier).into_iter().chain(there).map(|gone| (gone, id)));
                }
            }
            newest.insert(label, (t, id));
        }
        kept.push(t);
        id += 1;
    }
    *written = kept;
    Ok(replaced)
}

fn refuse_duplicate(row: usize, t: usize, label: i64, before: Option<(usize, i64)>, there: &[i64]) -> Result<()> {
    let found = match (before, there) {
        (Some((earlier, _)), _) => format!("hold label {label} twice, at tokens {earlier} and {t}"),
        (None, [entry, ..]) => format!("hold label {label} at token {t}, and entry {entry} of the row has it"),
        (None, []) => return Ok(()),
    };
    let what = format!("labels of row {row} {found}: take it out, or ask for on_duplicate=\"skip\" or \"replace\"");
    Err(Error::at(t, Kind::Argument, what))
}
