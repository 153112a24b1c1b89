//! How entries were used: hits, softmax mass, and when, in columns of a lane that evict policies read.
//!
//! Nothing is held for a lane that was never touched. Pages of ids are shared between versions and copied when written.
//! What an ended entry had stays in its page until the page goes; its id never comes back, so nobody reads it.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::bank::Bank;
use crate::columns::drop_dead_pages;
use crate::error::{Kind, Result, ensure};

/// Ids per page.
const PAGE_IDS: i64 = 256;

/// How one entry was used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Use {
    /// Times that it was among the hits.
    pub hits: u64,
    /// Sum of its softmax weights, where they were told.
    pub mass: f64,
    /// What the evict policy makes of both: see [`Heat`].
    pub heat: f64,
    /// Number of the last version that a touch of it made, or its writing or a merge into it where a policy asks; 0: none.
    pub last: u64,
    /// Number of the version that wrote it, where a policy asks.
    pub born: u64,
    /// Number of the last version that wrote it or merged something into it, where a policy asks.
    pub updated: u64,
    /// Tokens that it stands for, where a policy asks: one and those that were merged into it.
    pub count: u64,
    /// One more than the id of the representative of its cluster, which counts it; 0: it represents one, or there are none.
    pub member: u64,
    /// With [`Heat::window`], what was told in the period before that of `last`.
    pub before: f64,
}

/// What an evict policy makes of the use of entries: the hits or the mass of each touch, and of what there was before a
/// share of `decay` for each version since the touch before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heat {
    /// From 0, exclusive, to 1.
    pub decay: f64,
    /// The mass of touches, not their number.
    pub by_mass: bool,
    /// Versions that count; what each period of as many told is summed apart. 0: all count.
    pub window: u64,
}

impl Default for Heat {
    fn default() -> Heat {
        Heat { decay: 1.0, by_mass: false, window: 0 }
    }
}

impl Use {
    /// Of what version `number` writes.
    pub(crate) fn written(number: u64) -> Use {
        Use { last: number, born: number, updated: number, count: 1, ..Use::default() }
    }

    /// As a sample of the cluster of an entry, which counts it.
    pub(crate) fn sampled(self, founder: i64) -> Use {
        Use { count: 0, member: founder as u64 + 1, ..self }
    }

    /// The representative of its cluster, if it is one of its samples.
    pub(crate) fn founder(&self) -> Option<i64> {
        self.member.checked_sub(1).and_then(|id| i64::try_from(id).ok())
    }

    /// What was told in the period of `window` versions that version `number` is in, and in the one before.
    fn periods(&self, number: u64, window: u64) -> (f64, f64) {
        match number / window - self.last / window {
            0 => (self.heat, self.before),
            1 => (0.0, self.heat),
            _ => (0.0, 0.0),
        }
    }

    /// What was told in the last `window` versions, up to `number`: of the period before, the share that they still cover.
    pub(crate) fn within(&self, number: u64, window: u64) -> f64 {
        let (now, before) = self.periods(number, window);
        let past = number % window + 1;
        now + before * ((window - past) as f64 / window as f64)
    }

    /// After version `number` merged so many tokens into it.
    pub(crate) fn merged(self, tokens: u64, number: u64, heat: Heat) -> Use {
        Use { updated: number, count: self.count.max(1).saturating_add(tokens), ..self.touched((0, 0.0), number, heat) }
    }

    /// After touches that are seen from version `number` on.
    pub(crate) fn touched(self, (hits, mass): (u64, f64), number: u64, heat: Heat) -> Use {
        let share = if heat.decay == 1.0 { 1.0 } else { heat.decay.powf((number - self.last) as f64) };
        // What is left of something is never nothing: worth only rises, see `evict/line.rs`.
        let left = if self.heat > 0.0 { (self.heat * share).max(f64::MIN_POSITIVE) } else { 0.0 };
        let more = if heat.by_mass { mass } else { hits as f64 };
        let (left, before) = if heat.window == 0 { (left, 0.0) } else { self.periods(number, heat.window) };
        // Sums stay finite, as files must say.
        Use {
            hits: self.hits.saturating_add(hits),
            mass: (self.mass + mass).min(f64::MAX),
            heat: (left + more).min(f64::MAX),
            last: number,
            before,
            ..self
        }
    }
}

/// Touches of entries of one lane, by id, summed.
pub(crate) type Touches = BTreeMap<i64, (u64, f64)>;

/// One [`Use`] per id.
#[derive(Clone, Default)]
pub(crate) struct Usage {
    /// By number of the page, ascending.
    pages: Vec<(i64, Arc<[Use]>)>,
}

impl Usage {
    /// How an entry was used.
    pub(crate) fn get(&self, id: i64) -> Use {
        let page = self.pages.binary_search_by_key(&(id / PAGE_IDS), |(number, _)| *number);
        page.map_or(Use::default(), |at| self.pages[at].1[(id % PAGE_IDS) as usize])
    }

    /// How each of these entries was used, ids ascending.
    pub(crate) fn each(&self, ids: &[i64], mut tell: impl FnMut(&Use)) {
        for run in ids.chunk_by(|a, b| a / PAGE_IDS == b / PAGE_IDS) {
            match self.pages.binary_search_by_key(&(run[0] / PAGE_IDS), |(number, _)| *number) {
                Ok(at) => run.iter().for_each(|id| tell(&self.pages[at].1[(id % PAGE_IDS) as usize])),
                Err(_) => run.iter().for_each(|_| tell(&Use::default())),
            }
        }
    }

    /// The uses of a page, to be changed.
    fn page(&mut self, page: i64) -> &mut [Use] {
        let at = self.pages.binary_search_by_key(&page, |(number, _)| *number).unwrap_or_else(|at| {
            self.pages.insert(at, (page, Arc::new([Use::default(); PAGE_IDS as usize])));
            at
        });
        Arc::make_mut(&mut self.pages[at].1)
    }

    /// Adds touches of an entry, seen from version `number` on.
    pub(crate) fn add(&mut self, id: i64, touches: (u64, f64), number: u64, heat: Heat) {
        let used = &mut self.page(id / PAGE_IDS)[(id % PAGE_IDS) as usize];
        *used = used.touched(touches, number, heat);
    }

    /// Notes that version `number` wrote these ids.
    pub(crate) fn begin(&mut self, ids: Range<i64>, number: u64) {
        let mut id = ids.start;
        while id < ids.end {
            let end = ids.end.min((id / PAGE_IDS + 1) * PAGE_IDS);
            let page = self.page(id / PAGE_IDS);
            page[(id % PAGE_IDS) as usize..][..(end - id) as usize].fill(Use::written(number));
            id = end;
        }
    }

    /// Sets how an entry was used.
    pub(crate) fn set(&mut self, id: i64, used: Use) {
        self.page(id / PAGE_IDS)[(id % PAGE_IDS) as usize] = used;
    }

    /// Forgets pages of which every id is `end` or more.
    pub(crate) fn drop_from(&mut self, end: i64) {
        self.pages.retain(|(page, _)| page * PAGE_IDS < end);
    }

    /// Forgets pages of which every id is below `id`.
    pub(crate) fn drop_below(&mut self, id: i64) {
        self.pages.retain(|(page, _)| (page + 1) * PAGE_IDS > id);
    }

    /// Forgets pages that overlap any of `ended` and of which no id is `live`.
    pub(crate) fn drop_ended(&mut self, ended: &[Range<i64>], live: impl Fn(Range<i64>) -> bool) {
        drop_dead_pages(&mut self.pages, PAGE_IDS, ended, live);
    }

    /// Whether nothing was ever touched.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Address and bytes of each page.
    pub(crate) fn page_bytes(&self) -> impl Iterator<Item = (*const Use, usize)> {
        self.pages.iter().map(|(_, page)| (page.as_ptr(), size_of_val::<[Use]>(page)))
    }

    /// Bytes of the list of pages.
    pub(crate) fn nbytes(&self) -> usize {
        self.pages.capacity() * size_of::<(i64, Arc<[Use]>)>()
    }
}

/// What was found, and the weight that each find got.
#[derive(Clone, Copy)]
pub struct Found<'a> {
    /// Bank row of each row of `ids`.
    pub rows: &'a [usize],
    /// `[rows, query_heads, T * k]`; negative: no hit.
    pub ids: &'a [i64],
    /// Places of one query: what stands there several times was found once.
    pub k: usize,
    /// Query heads.
    pub heads: usize,
    /// Softmax weights, one per id; None: not told.
    pub mass: Option<&'a [f64]>,
}

impl Bank {
    /// Stages the use of what was found; a commit counts it, before it writes. Ids that are not there are passed over.
    ///
    /// # Errors
    /// When the shapes do not fit each other and the bank, a row is not there, or a weight is negative, infinite or NaN.
    pub fn touch(&self, found: &Found) -> Result<()> {
        let mut staging = self.writer();
        let version = self.snapshot().version;
        let Found { rows, ids, k, heads: query_heads, mass } = *found;
        let heads = self.config().heads;
        let lanes = rows.len() * query_heads;
        let each = ids.len().checked_div(lanes).unwrap_or(0);
        let fits = query_heads.is_multiple_of(heads) && query_heads > 0 && each * lanes == ids.len() && k > 0;
        let fits = fits && each.is_multiple_of(k);
        ensure(fits || ids.is_empty(), Kind::Shape, || {
            format!("hits have {} rows and {query_heads} query heads; the bank has {heads} heads", rows.len())
        })?;
        ensure(mass.is_none_or(|mass| mass.len() == ids.len()), Kind::Shape, || {
            format!("mass has {} numbers for {} hits: give one per hit", mass.map_or(0, <[f64]>::len), ids.len())
        })?;
        if let Some(row) = rows.iter().find(|&&row| row >= version.rows.len()) {
            let message = || format!("hits name row {row}; the bank has {} rows", version.rows.len());
            return ensure(false, Kind::Row, message);
        }
        let weight = |at: usize| mass.map_or(0.0, |mass| mass[at]);
        let refused = (0..ids.len()).find(|&at| ids[at] >= 0 && !(weight(at).is_finite() && weight(at) >= 0.0));
        ensure(refused.is_none(), Kind::NonFinite, || {
            format!(
                "mass holds {} for a hit: softmax weights are finite and not negative",
                weight(refused.unwrap_or(0))
            )
        })?;
        let mut seen = HashSet::new();
        for (at, &id) in ids.iter().enumerate() {
            if at.is_multiple_of(k) {
                seen.clear();
            }
            let (row, head) = (rows[at / each / query_heads], at / each % query_heads / (query_heads / heads));
            // What is not live now is not live at the commit either: ids never come back.
            if id >= 0 && version.rows[row].lanes[head].locate(id).is_some() {
                let (hits, sum) = staging.touches.entry((row, head)).or_default().entry(id).or_default();
                *hits += u64::from(seen.insert(id));
                *sum = (*sum + weight(at)).min(f64::MAX);
            }
        }
        Ok(())
    }
}
