//! Pages: runs of tokens that are read together. Every token becomes an entry, and a column says which page it is in.
//!
//! The number of a page is the id of its first token, so numbers ascend, a page is a run of ids, and no two pages of a
//! row ever share one. Where pages begin is decided once, when tokens are committed, for all heads of the row: after so
//! many tokens (LongMem, Landmark attention, InfLLM), where the caller says so, or where a token surprises (EM-LLM, Fountas
//! et al. 2024, arXiv 2407.09450). What stands for a page is not stored: reads derive it from the entries that are left.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::{Append, LanePlan, View, WritePolicy};
use crate::cells::{ColumnType, Numbers, StagedColumns};
use crate::columns::AnyColumn;
use crate::config::Config;
use crate::error::{Error, Kind, Result, ensure};
use crate::version::Row;
use crate::work::Ticker;

/// The column of pages: int64, filled by the bank.
pub const PAGE: &str = "page";

/// The column that says where pages begin: bool, the caller's.
pub const BOUNDARY: &str = "boundary";

/// The column of surprises: float32, in nats, the caller's.
pub const SURPRISE: &str = "surprise";

/// The column of how well a token stands for its page: float32, the caller's.
pub const REPRESENTATIVE: &str = "representative";

/// Most tokens of a page, and of the window that surprises are compared with.
pub const MAX_TOKENS: u64 = 1 << 20;

/// How tokens are divided into pages, and what stands for a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paging {
    /// Where pages begin.
    pub boundaries: Boundaries,
    /// Tokens of a page at least: where one would begin sooner, none does.
    pub shortest: u64,
    /// Tokens of a page at most: then the next begins.
    pub longest: u64,
    /// What stands for a page.
    pub representatives: Representatives,
}

/// Where pages begin, beside where one is full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Boundaries {
    /// Nowhere else.
    Size,
    /// Where the column says so.
    Column,
    /// Where the surprise is above mean + gamma * standard deviation of the tokens before.
    Surprise {
        /// Standard deviations above the mean.
        gamma: f64,
        /// So many tokens before at most.
        window: u64,
    },
}

/// What stands for a page: the mean of some of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Representatives {
    /// Of all.
    Mean,
    /// Of the last alone.
    Last,
    /// Of so many with the largest numbers in the column; equal ones: the smaller id.
    Best(u64),
}

/// What the next token of a row has to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Paged {
    /// The page that it may join; None: it begins one.
    pub page: Option<i64>,
    /// The finite surprises of the last tokens, oldest first.
    pub recent: Vec<f32>,
}

/// The policy that appends all; its pages are decided by [`Paging::divide`], once per row.
pub(super) struct Pages;

impl WritePolicy for Pages {
    fn name(&self) -> &'static str {
        "pages"
    }

    fn plan(&self, view: View) -> Result<LanePlan> {
        Append.plan(view)
    }
}

impl Paging {
    /// Names and types of the columns that it reads; the caller gives them with every token.
    fn reads(&self) -> impl Iterator<Item = (&'static str, ColumnType)> {
        let of_boundaries = match self.boundaries {
            Boundaries::Size => None,
            Boundaries::Column => Some((BOUNDARY, ColumnType::Bool)),
            Boundaries::Surprise { .. } => Some((SURPRISE, ColumnType::F32)),
        };
        let best = matches!(self.representatives, Representatives::Best(_));
        of_boundaries.into_iter().chain(best.then_some((REPRESENTATIVE, ColumnType::F32)))
    }

    /// Refuses what cannot be, or columns that are not there.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        let ensure = |holds: bool, say: &dyn Fn() -> String| ensure(holds, Kind::Argument, say);
        let Paging { boundaries, shortest, longest, representatives } = *self;
        ensure((1..=MAX_TOKENS).contains(&longest), &|| {
            format!("write: longest={longest} must be from 1 to {MAX_TOKENS} tokens")
        })?;
        ensure((1..=longest).contains(&shortest), &|| {
            format!("write: shortest={shortest} must be from 1 to longest={longest}")
        })?;
        if let Boundaries::Surprise { gamma, window } = boundaries {
            ensure(gamma.is_finite(), &|| format!("write: surprise={gamma} must be a finite number"))?;
            ensure((1..=MAX_TOKENS).contains(&window), &|| {
                format!("write: window={window} must be from 1 to {MAX_TOKENS} tokens")
            })?;
        }
        ensure(representatives != Representatives::Best(0), &|| "write: representatives=0 must be at least 1".into())?;
        for (name, dtype) in self.reads().chain([(PAGE, ColumnType::I64)]) {
            let there = config.columns.iter().any(|column| column.name == name && column.dtype == dtype);
            ensure(there, &|| {
                format!("columns: write=Pages needs the column {name:?} as {}, and declares it itself", dtype.name())
            })?;
        }
        Ok(())
    }

    /// Refuses columns of a stage call: the page is not the caller's to say, and what pages are made by must be there.
    pub(crate) fn check_given(&self, given: &[(&str, Numbers)], tokens: usize) -> Result<()> {
        let has = |name: &str| given.iter().any(|(other, _)| *other == name);
        ensure(!has(PAGE), Kind::Argument, || {
            format!("columns name {PAGE:?}, which write=Pages fills itself: leave it out")
        })?;
        for (name, dtype) in self.reads() {
            ensure(tokens == 0 || has(name), Kind::Argument, || {
                format!(
                    "columns lack {name:?}: this bank's pages are made by it, so give columns={{{name:?}: ...}} \
                     ({}, one number per token) with every write",
                    dtype.name()
                )
            })?;
        }
        Ok(())
    }

    /// Where a column of the bank stands among those declared; [`Paging::check`] made sure that it is there.
    pub(crate) fn column(config: &Config, name: &str) -> usize {
        config.columns.iter().position(|column| column.name == name).unwrap_or(usize::MAX)
    }

    /// The pages of `n` arriving tokens with ids from `id_lo` on, and what the token after them has to know.
    pub(crate) fn divide(
        &self,
        config: &Config,
        row: &Row,
        (id_lo, n): (i64, usize),
        staged: &StagedColumns,
        ticker: &Ticker,
    ) -> Result<(Vec<i64>, Paged)> {
        let Paged { mut page, mut recent } = row.paged.as_deref().cloned().unwrap_or_default();
        let (says, surprises) = match self.boundaries {
            Boundaries::Column => match staged.numbers(Paging::column(config, BOUNDARY)) {
                Some(Numbers::Bool(says)) => (says, &[] as &[f32]),
                _ => (&[] as &[bool], &[] as &[f32]),
            },
            Boundaries::Surprise { .. } => match staged.numbers(Paging::column(config, SURPRISE)) {
                Some(Numbers::F32(surprises)) => (&[] as &[bool], surprises),
                _ => (&[] as &[bool], &[] as &[f32]),
            },
            Boundaries::Size => (&[] as &[bool], &[] as &[f32]),
        };
        let mut pages = Vec::with_capacity(n);
        for token in 0..n {
            ticker.tick()?;
            let id = id_lo + token as i64;
            let mut begins = says.get(token).copied().unwrap_or(false);
            if let (Boundaries::Surprise { gamma, window }, Some(&surprise)) = (self.boundaries, surprises.get(token)) {
                let window = &recent[recent.len().saturating_sub(window as usize)..];
                begins = threshold(window, gamma).is_some_and(|threshold| f64::from(surprise) > threshold);
                if surprise.is_finite() {
                    recent.push(surprise);
                }
            }
            let here = match page {
                Some(page) => {
                    let length = (id - page) as u64;
                    if length >= self.longest || (begins && length >= self.shortest) { id } else { page }
                }
                None => id,
            };
            page = Some(here);
            pages.push(here);
        }
        if let Boundaries::Surprise { window, .. } = self.boundaries {
            let old = recent.len().saturating_sub(window as usize);
            recent.drain(..old);
        }
        Ok((pages, Paged { page, recent }))
    }

    /// Refuses rows that no such bank could have written.
    pub(crate) fn check_rows(&self, config: &Config, rows: &[Arc<Row>]) -> Result<()> {
        let longest = self.longest as i64;
        let at = Paging::column(config, PAGE);
        let window = match self.boundaries {
            Boundaries::Surprise { window, .. } => window as usize,
            _ => 0,
        };
        let mut seen = HashSet::new();
        for row in rows.iter().filter(|row| seen.insert(Arc::as_ptr(row))) {
            let mut last = 0;
            for lane in &row.lanes {
                let mut before = 0;
                for r in lane.lists().iter().flat_map(|list| list.refs()) {
                    for id in r.live_slots().map(|slot| r.id(slot)) {
                        let page = match row.columns.get(at) {
                            Some(AnyColumn::I64(column)) => column.get(id),
                            _ => return Err(torn("entries have no page")),
                        };
                        ensure(before <= page && page <= id && id - page < longest, Kind::Argument, || {
                            format!("the column {PAGE:?} does not divide entries into runs of at most {longest}")
                        })?;
                        before = page;
                    }
                }
                last = last.max(before);
            }
            if let Some(Paged { page, recent }) = row.paged.as_deref() {
                let fits = page.is_none_or(|page| last <= page && page < row.next_id && row.next_id - page <= longest)
                    && recent.len() <= window
                    && recent.iter().all(|surprise| surprise.is_finite());
                ensure(fits, Kind::Argument, || "the page that is being written cannot be".into())?;
            }
        }
        Ok(())
    }
}

fn torn(what: &str) -> Error {
    Error::new(Kind::Argument, format!("{what}, which write=Pages gives to each"))
}

/// What a surprise has to exceed: mean + gamma * standard deviation of the window, that of a population; None without one.
/// Sums are float64: number j goes to accumulator j mod 8, as in canonical scores, so that they do not depend on the machine.
fn threshold(window: &[f32], gamma: f64) -> Option<f64> {
    if window.is_empty() {
        return None;
    }
    let sum = |term: &dyn Fn(f64) -> f64| {
        let mut a = [0.0f64; 8];
        for numbers in window.chunks(8) {
            a.iter_mut().zip(numbers).for_each(|(a, &x)| *a += term(f64::from(x)));
        }
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    };
    let n = window.len() as f64;
    let mean = sum(&|x| x) / n;
    let variance = sum(&|x| (x - mean) * (x - mean)) / n;
    Some(mean + gamma * variance.sqrt())
}

/// Of entries in id order, given the number of each in the column, which stand for their page; ascending.
pub(crate) fn chosen(how: Representatives, n: usize, number: impl Fn(usize) -> f32) -> Vec<usize> {
    let last: Range<usize> = n.saturating_sub(1)..n;
    match how {
        Representatives::Mean => (0..n).collect(),
        Representatives::Last => last.collect(),
        Representatives::Best(r) => {
            // NaN stands for nothing.
            let of = |at: usize| Some(number(at)).filter(|x| !x.is_nan()).unwrap_or(f32::NEG_INFINITY);
            let mut order: Vec<(f32, usize)> = (0..n).map(|at| (of(at), at)).collect();
            order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1)));
            let mut best: Vec<usize> = order.into_iter().take(r as usize).map(|(_, at)| at).collect();
            best.sort_unstable();
            best
        }
    }
}
