//! Integers that every entry of a row has: its label and its position, by id, shared by the row's heads.

use std::sync::Arc;

/// Ids per page.
const PAGE_IDS: i64 = 512;

/// What an entry has that was not given anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// -1: labels.
    MinusOne,
    /// The id itself: positions.
    Id,
}

/// One integer per id; pages exist only where a number was given, so that distant ids cost nothing between them.
#[derive(Clone)]
pub(crate) struct Column {
    absent: Absent,
    /// By number of the page, ascending.
    pages: Vec<(i64, Arc<[i64]>)>,
}

impl Column {
    pub(crate) fn new(absent: Absent) -> Column {
        Column { absent, pages: Vec::new() }
    }

    /// Whether every entry has the default.
    pub(crate) fn is_absent(&self) -> bool {
        self.pages.is_empty()
    }

    fn default_of(&self, id: i64) -> i64 {
        match self.absent {
            Absent::MinusOne => -1,
            Absent::Id => id,
        }
    }

    /// Where a page is, or would be; pages mostly follow one another.
    fn place(&self, page: i64) -> Result<usize, usize> {
        let guess = self.pages.first().and_then(|(first, _)| usize::try_from(page - first).ok());
        match guess {
            Some(at) if self.pages.get(at).is_some_and(|(number, _)| *number == page) => Ok(at),
            _ => self.pages.binary_search_by_key(&page, |(number, _)| *number),
        }
    }

    /// The number of an id.
    pub(crate) fn get(&self, id: i64) -> i64 {
        match self.place(id / PAGE_IDS) {
            Ok(at) => self.pages[at].1[(id % PAGE_IDS) as usize],
            Err(_) => self.default_of(id),
        }
    }

    /// Sets the numbers of `id_lo..`.
    pub(crate) fn set(&mut self, id_lo: i64, numbers: &[i64]) {
        for (id, &number) in (id_lo..).zip(numbers) {
            let page = id / PAGE_IDS;
            let at = self.place(page).unwrap_or_else(|at| {
                let first = page * PAGE_IDS;
                let defaults = (first..first + PAGE_IDS).map(|id| self.default_of(id)).collect();
                self.pages.insert(at, (page, defaults));
                at
            });
            Arc::make_mut(&mut self.pages[at].1)[(id % PAGE_IDS) as usize] = number;
        }
    }

    /// Notes that numbers were given although none differs from the default: `id` gets a page.
    pub(crate) fn note(&mut self, id: i64) {
        self.set(id, &[self.default_of(id)]);
    }

    /// Forgets pages of which every id is `end` or more.
    pub(crate) fn drop_from(&mut self, end: i64) {
        self.pages.retain(|(page, _)| page * PAGE_IDS < end);
    }

    /// Forgets pages of which every id is below `id`.
    pub(crate) fn drop_below(&mut self, id: i64) {
        let n = self.pages.partition_point(|(page, _)| *page < id / PAGE_IDS);
        self.pages.drain(..n);
    }

    /// Address and bytes of each page.
    pub(crate) fn page_bytes(&self) -> impl Iterator<Item = (*const i64, usize)> {
        self.pages.iter().map(|(_, page)| (page.as_ptr(), size_of_val::<[i64]>(page)))
    }
}
