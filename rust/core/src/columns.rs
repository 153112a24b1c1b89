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

/// One integer per id; pages exist only where a number was given.
#[derive(Clone)]
pub(crate) struct Column {
    absent: Absent,
    first_page: i64,
    pages: Vec<Option<Arc<[i64]>>>,
}

impl Column {
    pub(crate) fn new(absent: Absent) -> Column {
        Column { absent, first_page: 0, pages: Vec::new() }
    }

    /// Whether every entry has the default.
    pub(crate) fn is_absent(&self) -> bool {
        self.pages.iter().all(Option::is_none)
    }

    fn default_of(&self, id: i64) -> i64 {
        match self.absent {
            Absent::MinusOne => -1,
            Absent::Id => id,
        }
    }

    /// The number of an id.
    pub(crate) fn get(&self, id: i64) -> i64 {
        let page = usize::try_from(id / PAGE_IDS - self.first_page).ok().and_then(|page| self.pages.get(page));
        match page {
            Some(Some(page)) => page[(id % PAGE_IDS) as usize],
            _ => self.default_of(id),
        }
    }

    /// Sets the numbers of `id_lo..`; ids only grow.
    pub(crate) fn set(&mut self, id_lo: i64, numbers: &[i64]) {
        if self.pages.is_empty() {
            self.first_page = id_lo / PAGE_IDS;
        }
        for (id, &number) in (id_lo..).zip(numbers) {
            let Ok(at) = usize::try_from(id / PAGE_IDS - self.first_page) else { continue };
            if at >= self.pages.len() {
                self.pages.resize(at + 1, None);
            }
            if self.pages[at].is_none() {
                let first = id / PAGE_IDS * PAGE_IDS;
                self.pages[at] = Some((first..first + PAGE_IDS).map(|id| self.default_of(id)).collect());
            }
            if let Some(page) = &mut self.pages[at] {
                Arc::make_mut(page)[(id % PAGE_IDS) as usize] = number;
            }
        }
    }

    /// Forgets pages of which every id is below `id`.
    pub(crate) fn drop_below(&mut self, id: i64) {
        let n = (id / PAGE_IDS - self.first_page).clamp(0, self.pages.len() as i64);
        self.pages.drain(..n as usize);
        self.first_page += n;
    }

    /// Address and bytes of each page.
    pub(crate) fn page_bytes(&self) -> impl Iterator<Item = (*const i64, usize)> {
        self.pages.iter().flatten().map(|page| (page.as_ptr(), size_of_val::<[i64]>(page)))
    }
}
