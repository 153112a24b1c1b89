//! Who goes next: the least entries of a lane in order, kept from commit to commit, so that one scan serves many of them.
//!
//! Worth only rises, and what arrives is put in line if it is worth less than `limit`; so whoever is not in line is worth
//! `limit` or more, and the front of the line are the least of all.

use std::sync::Arc;

use super::rank::Rank;

/// The least entries of a lane, in order.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    order: Arc<Vec<Rank>>,
    /// Those before it have gone.
    next: usize,
    limit: Rank,
}

impl Line {
    /// Of all entries that may go, the `most` least.
    pub(crate) fn of(mut all: Vec<Rank>, most: usize) -> Line {
        let mut limit = Rank::MOST;
        if all.len() > most {
            limit = *all.select_nth_unstable(most).1;
            all.truncate(most);
        }
        all.sort_unstable();
        Line { order: Arc::new(all), next: 0, limit }
    }

    /// Takes `n` from the front, of those in line and those that `arrive`. `now` says what one is worth now, None where it
    /// is gone; `may_go` whether it may go. None: the line is too short.
    pub(crate) fn take(
        &self,
        n: usize,
        arrive: impl Iterator<Item = Rank>,
        now: impl Fn(i64) -> Option<Rank>,
        may_go: impl Fn(i64) -> bool,
    ) -> Option<(Vec<i64>, Line)> {
        let mut late: Vec<Rank> = arrive.filter(|rank| *rank < self.limit).collect();
        late.sort_unstable();
        // Later ones first, so that the least is taken from the end.
        late.reverse();
        let (mut taken, mut kept, mut next) = (Vec::with_capacity(n), Vec::new(), self.next);
        while taken.len() < n {
            let first = match (self.order.get(next), late.last()) {
                (Some(a), Some(b)) if b < a => late.pop(),
                (Some(a), _) => {
                    next += 1;
                    Some(*a)
                }
                (None, _) => late.pop(),
            }?;
            let Some(rank) = now(first.id) else { continue };
            if rank > first {
                // It was used since.
                if rank < self.limit {
                    late.insert(late.partition_point(|other| *other > rank), rank);
                }
            } else if may_go(first.id) {
                taken.push(first.id);
            } else {
                kept.push(first);
            }
        }
        let order = if kept.is_empty() && late.is_empty() {
            return Some((taken, Line { next, ..self.clone() }));
        } else {
            kept.extend(late);
            kept.extend_from_slice(&self.order[next..]);
            kept.sort_unstable();
            kept
        };
        Some((taken, Line { order: Arc::new(order), next: 0, limit: self.limit }))
    }

    /// Bytes that it holds.
    pub(crate) fn nbytes(&self) -> usize {
        self.order.capacity() * size_of::<Rank>()
    }
}
