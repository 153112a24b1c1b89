//! Entries in id order: references to blocks, in pages that versions share.
//!
//! A list is two-level, so that changing one reference copies a page of 64 and not a vector of millions. Ids ascend
//! along a list; an id is found by binary search, and never moves unless its block is rewritten.

use std::ops::Range;
use std::sync::Arc;

use crate::block::{BLOCK_ROWS, Block, Encoded, Schema};
use crate::error::Result;
use crate::extent::Demand;
use crate::lane::Arrival;
use crate::work::Ticker;

/// References per page.
const PAGE_REFS: usize = 64;

/// A block as one list of one version sees it.
#[derive(Clone)]
pub struct Ref {
    /// The rows; shared.
    pub block: Arc<Block>,
    /// Id of row 0.
    pub id_lo: i64,
    /// Id of each row, less `id_lo`, where ids have gaps; None: row i has id `id_lo + i`.
    pub offsets: Option<Arc<Vec<u32>>>,
    /// Bit i: row i is alive.
    pub live: u64,
}

impl Ref {
    /// The id of a row.
    #[inline]
    pub fn id(&self, slot: usize) -> i64 {
        self.id_lo + self.offsets.as_ref().map_or(slot as i64, |offsets| i64::from(offsets[slot]))
    }

    /// One past the largest id written here.
    pub(crate) fn id_hi(&self) -> i64 {
        self.id(self.block.len() - 1) + 1
    }

    /// Rows with an id below `id`, as a count: ids ascend within a block.
    pub(crate) fn rows_below(&self, id: i64) -> usize {
        let n = self.block.len();
        match &self.offsets {
            None => id.saturating_sub(self.id_lo).clamp(0, n as i64) as usize,
            Some(offsets) => offsets.partition_point(|&offset| self.id_lo + i64::from(offset) < id),
        }
    }

    /// The row of a live id.
    pub(crate) fn slot(&self, id: i64) -> Option<usize> {
        let slot = self.rows_below(id);
        (slot < self.block.len() && self.id(slot) == id && self.live >> slot & 1 == 1).then_some(slot)
    }

    /// Rows alive.
    pub(crate) fn n_live(&self) -> usize {
        self.live.count_ones() as usize
    }

    /// Appends rows of `from`, where row i has id `id_lo + i`; copies the block first if another version holds it.
    fn extend(&mut self, schema: &Schema, from: &Encoded, rows: Range<usize>, id_lo: i64) {
        let n = self.block.len();
        let id = id_lo + rows.start as i64;
        if self.offsets.is_some() || id != self.id_lo + n as i64 {
            let offsets = self.offsets.get_or_insert_with(|| Arc::new((0..n as u32).collect()));
            let lo = (id - self.id_lo) as u32;
            Arc::make_mut(offsets).extend(lo..lo + rows.len() as u32);
        }
        self.live |= first_rows(n + rows.len()) & !first_rows(n);
        Arc::make_mut(&mut self.block).extend(schema, from, rows.start, rows.len());
    }

    /// The live rows, ascending.
    pub(crate) fn live_slots(&self) -> impl Iterator<Item = usize> + use<> {
        let mut live = self.live;
        std::iter::from_fn(move || {
            let slot = live.trailing_zeros() as usize;
            live &= live.wrapping_sub(1);
            (slot < BLOCK_ROWS).then_some(slot)
        })
    }
}

/// A mask of the first `n` rows.
#[inline]
pub(crate) fn first_rows(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Entries of one list, ids ascending.
#[derive(Clone, Default)]
pub struct List {
    pages: Vec<Arc<Vec<Ref>>>,
}

/// Rows ready to be added to a list: some fit its last block, the others are in blocks of their own.
pub(crate) struct Append {
    tail: Vec<Range<usize>>,
    /// The last block's copy, where it is shared and rows go into it.
    copy: Option<Arc<Block>>,
    refs: Vec<Ref>,
}

impl List {
    /// All references, ids ascending.
    pub fn refs(&self) -> impl Iterator<Item = &Ref> {
        self.pages.iter().flat_map(|page| page.iter())
    }

    /// The reference and row of a live id.
    pub(crate) fn locate(&self, id: i64) -> Option<(&Ref, usize)> {
        let (page, at) = self.place(id)?;
        let found = &self.pages[page][at];
        Some((found, found.slot(id)?))
    }

    /// Page and place of the only reference that can hold `id`.
    fn place(&self, id: i64) -> Option<(usize, usize)> {
        let page = self.pages.partition_point(|page| page[0].id_lo <= id).checked_sub(1)?;
        let at = self.pages[page].partition_point(|r| r.id_lo <= id).checked_sub(1)?;
        Some((page, at))
    }

    /// Builds what `runs` of arriving rows need, ascending, for a lane of that `demand`. `held`: another version has this list too. May fail, changes
    /// nothing.
    pub(crate) fn prepare(
        &self,
        schema: &Schema,
        demand: Demand<'_>,
        arrival: Arrival,
        runs: &[Range<usize>],
        held: bool,
        ticker: &Ticker,
    ) -> Result<Append> {
        let Arrival { id_lo, rows: from } = arrival;
        let mut append = Append { tail: Vec::new(), copy: None, refs: Vec::new() };
        let mut done = 0;
        let tail = self.pages.last().and_then(|page| page.last());
        let far = |lo: i64| u32::try_from(id_lo + from.len() as i64 - lo).is_err();
        let mut room = tail.filter(|tail| !far(tail.id_lo)).map_or(0, |tail| tail.block.room());
        for run in runs {
            let mut first = run.start;
            while first < run.end {
                ticker.tick()?;
                if room == 0 {
                    let before = append.refs.last().or(tail).map(|r| &*r.block);
                    let block = Block::for_lane(schema, before, Demand { now: demand.now - done, ..demand })?;
                    room = block.room();
                    append.refs.push(Ref {
                        block: Arc::new(block),
                        id_lo: id_lo + first as i64,
                        offsets: None,
                        live: 0,
                    });
                }
                let n = room.min(run.end - first);
                match append.refs.last_mut() {
                    Some(last) => last.extend(schema, from, first..first + n, id_lo),
                    None => append.tail.push(first..first + n),
                }
                first += n;
                room -= n;
                done += n;
            }
        }
        if let (false, Some(page), Some(tail)) = (append.tail.is_empty(), self.pages.last(), tail)
            && (held || Arc::strong_count(page) > 1 || Arc::strong_count(&tail.block) > 1)
        {
            append.copy = Some(Arc::new(tail.block.try_clone()?));
        }
        Ok(append)
    }

    /// Performs a prepared append; returns the entries added.
    pub(crate) fn append(&mut self, schema: &Schema, arrival: Arrival, append: Append) -> usize {
        let Arrival { id_lo, rows: from } = arrival;
        let mut added = 0;
        if !append.tail.is_empty()
            && let Some(tail) = self.pages.last_mut().and_then(|page| Arc::make_mut(page).last_mut())
        {
            if let Some(copy) = append.copy {
                tail.block = copy;
            }
            for run in append.tail {
                added += run.len();
                tail.extend(schema, from, run, id_lo);
            }
        }
        for r in append.refs {
            added += r.n_live();
            self.push(r);
        }
        added
    }

    fn push(&mut self, r: Ref) {
        match self.pages.last_mut() {
            Some(page) if page.len() < PAGE_REFS => Arc::make_mut(page).push(r),
            _ => {
                let mut page = Vec::with_capacity(4);
                page.push(r);
                self.pages.push(Arc::new(page));
            }
        }
    }

    /// Whether any of the ids is live.
    pub(crate) fn has_any(&self, ids: &Range<i64>) -> bool {
        let (page, at) = self.place(ids.start).unwrap_or_default();
        let refs = self.pages.iter().skip(page).flat_map(|page| page.iter()).skip(at);
        let mut near = refs.take_while(|r| r.id_lo < ids.end);
        near.any(|r| r.live & first_rows(r.rows_below(ids.end)) & !first_rows(r.rows_below(ids.start)) != 0)
    }

    /// Ends one entry; whether there was one. The ids of a block of which nothing is left are added to `emptied`.
    pub(crate) fn kill(&mut self, id: i64, emptied: &mut Vec<Range<i64>>) -> bool {
        let Some((page, at)) = self.place(id) else { return false };
        let Some(slot) = self.pages[page][at].slot(id) else { return false };
        let refs = Arc::make_mut(&mut self.pages[page]);
        refs[at].live &= !(1 << slot);
        if refs[at].live == 0 {
            emptied.push(refs[at].id_lo..refs[at].id_hi());
            refs.remove(at);
            if refs.is_empty() {
                self.pages.remove(page);
            }
        }
        true
    }

    /// Ends every entry with an id below `id`; returns how many.
    pub(crate) fn floor(&mut self, id: i64) -> usize {
        let whole = self.pages.partition_point(|page| page.last().is_some_and(|r| r.id_hi() <= id));
        let mut ended: usize = self.pages.drain(..whole).map(|page| page.iter().map(Ref::n_live).sum::<usize>()).sum();
        if let Some(page) = self.pages.first_mut()
            && page[0].id_lo < id
        {
            ended += trim(page, |r| !first_rows(r.rows_below(id)));
        }
        self.drop_empty_pages();
        ended
    }

    /// Ends every entry with an id of `id` or more; returns how many.
    pub(crate) fn ceil(&mut self, id: i64) -> usize {
        let keep = self.pages.partition_point(|page| page[0].id_lo < id);
        let mut ended: usize = self.pages.drain(keep..).map(|page| page.iter().map(Ref::n_live).sum::<usize>()).sum();
        if let Some(page) = self.pages.last_mut()
            && page.last().is_some_and(|r| r.id_hi() > id)
        {
            ended += trim(page, |r| first_rows(r.rows_below(id)));
        }
        self.drop_empty_pages();
        ended
    }

    fn drop_empty_pages(&mut self) {
        self.pages.retain(|page| !page.is_empty());
    }

    /// The block of a live id, to be changed in place.
    pub(crate) fn block_mut(&mut self, id: i64) -> Option<(&mut Block, usize)> {
        let (page, at) = self.place(id)?;
        let slot = self.pages[page][at].slot(id)?;
        Some((Arc::make_mut(&mut Arc::make_mut(&mut self.pages[page])[at].block), slot))
    }

    /// Bytes of the reference pages.
    pub(crate) fn page_bytes(&self) -> impl Iterator<Item = (*const Vec<Ref>, usize)> {
        self.pages.iter().map(|page| (Arc::as_ptr(page), page.capacity() * size_of::<Ref>()))
    }
}

/// Keeps the live rows that `keep` masks, and the references that still have any; returns how many entries ended.
fn trim(page: &mut Arc<Vec<Ref>>, keep: impl Fn(&Ref) -> u64) -> usize {
    let mut ended = 0;
    Arc::make_mut(page).retain_mut(|r| {
        let live = r.live & keep(r);
        ended += r.n_live() - live.count_ones() as usize;
        r.live = live;
        live != 0
    });
    ended
}

#[cfg(test)]
mod tests {
    use mnemex_kernels::canonical::Metric;

    use super::*;
    use crate::arena::Arena;
    use crate::codec::Codec;
    use crate::layout::Layout;

    #[test]
    fn a_last_block_that_another_version_holds_is_copied_before_readers_have_to_wait() {
        let key = Layout::whole(Codec::F32, 4);
        let schema = Schema { metric: Metric::Dot, key, value: None, key_is_value: false };
        let rows = Encoded::zeroed(&schema, 3).unwrap();
        let last = |list: &List| list.refs().last().map(|r| Arc::as_ptr(&r.block));
        let arena = &Arena::default();
        let demand = Demand { now: 3, in_all: 3, in_bank: 3, arena };
        // Returns the copy that was made beforehand; the list has it from then on.
        let add = |list: &mut List, id_lo: i64, held: bool| {
            let arrival = Arrival { id_lo, rows: &rows };
            let append =
                list.prepare(&schema, demand, arrival, std::slice::from_ref(&(0..3)), held, &Ticker::never()).unwrap();
            let copy = append.copy.as_ref().map(Arc::as_ptr);
            assert_eq!(list.append(&schema, arrival, append), 3);
            assert!(copy.is_none() || copy == last(list), "the copy is what rows were added to");
            copy
        };
        let mut list = List::default();
        assert!(add(&mut list, 0, false).is_none(), "there is no last block yet");
        let block = last(&list);
        assert!(add(&mut list, 3, false).is_none(), "a block of one version is written in place");
        assert_eq!(last(&list), block);
        let other = list.clone();
        assert!(add(&mut list, 6, false).is_some());
        assert!(add(&mut list, 9, true).is_some(), "a version may be held as a whole");
        let lengths = [&other, &list].map(|list| list.refs().map(|r| r.block.len()).sum::<usize>());
        assert_eq!(lengths, [6, 12]);
    }
}
