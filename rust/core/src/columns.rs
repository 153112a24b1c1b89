//! Numbers that every entry of a row has, by id, shared by the row's heads: its label, its position, and the caller's.

use std::ops::Range;
use std::sync::Arc;

use crate::cells::{Cells, ColumnType, Numbers};

/// Ids per page.
const PAGE_IDS: i64 = 512;

/// One number per id; pages exist only where a number was given, so that distant ids cost nothing between them.
#[derive(Clone)]
pub(crate) struct Column<T> {
    /// What an entry has that was given nothing.
    absent: fn(i64) -> T,
    /// By number of the page, ascending.
    pages: Vec<(i64, Arc<[T]>)>,
}

impl<T: Copy> Column<T> {
    pub(crate) fn new(absent: fn(i64) -> T) -> Column<T> {
        Column { absent, pages: Vec::new() }
    }

    /// Whether no number was given to any entry.
    pub(crate) fn is_absent(&self) -> bool {
        self.pages.is_empty()
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
    #[inline]
    pub(crate) fn get(&self, id: i64) -> T {
        match self.place(id / PAGE_IDS) {
            Ok(at) => self.pages[at].1[(id % PAGE_IDS) as usize],
            Err(_) => (self.absent)(id),
        }
    }

    /// The numbers of `n` ids from `id_lo` on, where they lie side by side in one page.
    pub(crate) fn run(&self, id_lo: i64, n: usize) -> Option<&[T]> {
        let at = self.place(id_lo / PAGE_IDS).ok()?;
        self.pages[at].1.get((id_lo % PAGE_IDS) as usize..)?.get(..n)
    }

    /// Sets the numbers of `id_lo..`.
    pub(crate) fn set(&mut self, id_lo: i64, numbers: &[T]) {
        let (mut id, mut left) = (id_lo, numbers);
        while !left.is_empty() {
            let (page, slot) = (id / PAGE_IDS, (id % PAGE_IDS) as usize);
            let at = self.place(page).unwrap_or_else(|at| {
                let first = page * PAGE_IDS;
                self.pages.insert(at, (page, (first..first + PAGE_IDS).map(self.absent).collect()));
                at
            });
            let (here, later) = left.split_at(left.len().min(PAGE_IDS as usize - slot));
            Arc::make_mut(&mut self.pages[at].1)[slot..][..here.len()].copy_from_slice(here);
            (id, left) = (id + here.len() as i64, later);
        }
    }

    /// Notes that numbers were given although none differs from what is absent: `id` gets a page.
    pub(crate) fn note(&mut self, id: i64) {
        self.set(id, &[(self.absent)(id)]);
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

    /// Forgets pages that overlap any of `ended` and of which no id is `live`; the last page stays, since it says
    /// that numbers were given.
    pub(crate) fn drop_ended(&mut self, ended: &[Range<i64>], live: impl Fn(Range<i64>) -> bool) {
        let Some(last) = self.pages.pop() else { return };
        drop_dead_pages(&mut self.pages, PAGE_IDS, ended, live);
        self.pages.push(last);
    }

    /// Address and bytes of each page.
    pub(crate) fn page_bytes(&self) -> impl Iterator<Item = (*const u8, usize)> {
        self.pages.iter().map(|(_, page)| (page.as_ptr().cast(), size_of_val::<[T]>(page)))
    }
}

/// A column of the caller's.
#[derive(Clone)]
pub(crate) enum AnyColumn {
    F32(Column<f32>),
    I64(Column<i64>),
    Bool(Column<bool>),
}

/// The same words for a column of any type.
macro_rules! each {
    ($any:expr, $column:ident => $words:expr) => {
        match $any {
            AnyColumn::F32($column) => $words,
            AnyColumn::I64($column) => $words,
            AnyColumn::Bool($column) => $words,
        }
    };
}

/// Drops pages of so many ids that overlap any of `ended`, which ascend, and of which no id is `live`.
pub(crate) fn drop_dead_pages<P>(
    pages: &mut Vec<(i64, P)>,
    page_ids: i64,
    ended: &[Range<i64>],
    live: impl Fn(Range<i64>) -> bool,
) {
    let mut dead = Vec::new();
    for ids in ended {
        let first = pages.partition_point(|(page, _)| (page + 1) * page_ids <= ids.start);
        let here = pages[first..].iter().map(|(page, _)| *page).take_while(|page| page * page_ids < ids.end);
        dead.extend(here.filter(|page| !live(page * page_ids..(page + 1) * page_ids)));
    }
    if !dead.is_empty() {
        pages.retain(|(page, _)| dead.binary_search(page).is_err());
    }
}

impl AnyColumn {
    pub(crate) fn new(dtype: ColumnType) -> AnyColumn {
        match dtype {
            ColumnType::F32 => AnyColumn::F32(Column::new(|_| 0.0)),
            ColumnType::I64 => AnyColumn::I64(Column::new(|_| 0)),
            ColumnType::Bool => AnyColumn::Bool(Column::new(|_| false)),
        }
    }

    /// The numbers of ids; what is absent where an id is negative.
    pub(crate) fn cells(&self, ids: &[i64]) -> Cells {
        fn of<T: Copy>(column: &Column<T>, ids: &[i64]) -> Vec<T> {
            ids.iter().map(|&id| if id < 0 { (column.absent)(id) } else { column.get(id) }).collect()
        }
        match self {
            AnyColumn::F32(column) => Cells::F32(of(column, ids)),
            AnyColumn::I64(column) => Cells::I64(of(column, ids)),
            AnyColumn::Bool(column) => Cells::Bool(of(column, ids)),
        }
    }

    /// Sets the numbers of `id_lo..`, which are of the column's type.
    pub(crate) fn set(&mut self, id_lo: i64, numbers: Numbers) {
        match (self, numbers) {
            (AnyColumn::F32(column), Numbers::F32(x)) => column.set(id_lo, x),
            (AnyColumn::I64(column), Numbers::I64(x)) => column.set(id_lo, x),
            (AnyColumn::Bool(column), Numbers::Bool(x)) => column.set(id_lo, x),
            _ => unreachable!("types were checked when the numbers came in"),
        }
    }

    /// Sets the number of each id, bit for bit, unless `fixed` says that it must be what it is; whether all are then as
    /// given. Equal numbers make no page. None: the numbers are of another type.
    pub(crate) fn restore(&mut self, ids: &[i64], numbers: Numbers, fixed: impl Fn(i64) -> bool) -> Option<bool> {
        fn each<T: Copy>(
            column: &mut Column<T>,
            numbers: impl Iterator<Item = (i64, T)>,
            same: impl Fn(T, T) -> bool,
            fixed: impl Fn(i64) -> bool,
        ) -> bool {
            for (id, number) in numbers {
                if !same(column.get(id), number) {
                    if fixed(id) {
                        return false;
                    }
                    column.set(id, &[number]);
                }
            }
            true
        }
        let ids = ids.iter().copied();
        match (self, numbers) {
            (AnyColumn::F32(column), Numbers::F32(x)) => {
                Some(each(column, ids.zip(x.iter().copied()), |a, b| a.to_bits() == b.to_bits(), fixed))
            }
            (AnyColumn::I64(column), Numbers::I64(x)) => {
                Some(each(column, ids.zip(x.iter().copied()), |a, b| a == b, fixed))
            }
            (AnyColumn::Bool(column), Numbers::Bool(x)) => {
                Some(each(column, ids.zip(x.iter().copied()), |a, b| a == b, fixed))
            }
            _ => None,
        }
    }

    pub(crate) fn drop_from(&mut self, end: i64) {
        each!(self, column => column.drop_from(end));
    }

    pub(crate) fn drop_below(&mut self, id: i64) {
        each!(self, column => column.drop_below(id));
    }

    pub(crate) fn drop_ended(&mut self, ended: &[Range<i64>], live: impl Fn(Range<i64>) -> bool) {
        each!(self, column => column.drop_ended(ended, live));
    }

    pub(crate) fn page_bytes(&self) -> Vec<(*const u8, usize)> {
        each!(self, column => column.page_bytes().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_across_pages_and_nothing_lies_between_distant_ones() {
        let mut column = Column::new(|id| -id);
        let numbers: Vec<i64> = (0..1300).map(|i| i * i).collect();
        column.set(500, &numbers);
        column.set(1 << 60, &[7]);
        for id in [0, 499, 500, 511, 512, 1023, 1024, 1799, 1800, (1 << 60) - 1, 1 << 60, (1 << 60) + 1] {
            let given = if id == 1 << 60 {
                Some(7)
            } else {
                usize::try_from(id - 500).ok().and_then(|i| numbers.get(i).copied())
            };
            assert_eq!(column.get(id), given.unwrap_or(-id));
        }
        assert_eq!(column.page_bytes().count(), 5);
        assert_eq!(column.run(512, 512), Some(&numbers[12..524]));
        assert!(column.run(500, 64).is_none(), "a run lies in one page");
        assert!(column.run(5000, 1).is_none(), "a page that is not there has no run");
        column.drop_below(1024);
        column.drop_from(1 << 60);
        assert_eq!([512, 1023, 1024, 1 << 60].map(|id| column.get(id)), [-512, -1023, numbers[524], -(1 << 60)]);
    }
}
