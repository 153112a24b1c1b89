//! The best pairs of two sorted lists of half scores, whatever ties there are: the answer, slowly.
//!
//! Pair (i, j), counted from 1 in the order of scores, has i j pairs at or above it, so the k best sums are among those
//! with i j <= k: about k ln k of them (Lample et al. 2019 look at k^2). Which of the pairs that round to the last of
//! these sums belong to the answer is for the ids to say, and those may lie anywhere.

use super::{Slot, score};
use crate::error::{Result, room_for};

/// Half scores in descending order, with their rows; of those that are not finite there are none.
fn descending(scores: &[f64]) -> Vec<(f64, usize)> {
    let finite = scores.iter().enumerate().filter(|(_, score)| score.is_finite());
    let mut sorted: Vec<(f64, usize)> = finite.map(|(row, &score)| (score, row)).collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    sorted
}

/// The best `k` slots, in order.
///
/// # Errors
/// When the memory is not to be had.
pub(super) fn best(halves: &[Vec<f64>; 2], k: usize) -> Result<Vec<Slot>> {
    let columns = halves[1].len();
    // Sorted lists, one of them twice and with room to sort, and as much for the columns of a row.
    let rows = 4 * (halves[0].len() + halves[1].len()) * size_of::<(f64, usize)>();
    room_for(rows, || "sorted half scores".into())?;
    let [first, second] = halves.each_ref().map(|scores| descending(scores));
    let n = usize::try_from(first.len() as u128 * second.len() as u128).unwrap_or(usize::MAX).min(k);
    if n == 0 {
        return Ok(Vec::new());
    }
    let id = |row: usize, column: usize| (row * columns + column) as i64;
    let looked_at = first.len().min(n);
    let looked_at: usize = (1..=looked_at).map(|i| second.len().min(n / i)).sum();
    let bytes = looked_at.saturating_mul(size_of::<f32>()).saturating_add(n.saturating_mul(size_of::<Slot>()));
    room_for(bytes, || format!("the sums among which the best {n} are"))?;
    let mut sums: Vec<f32> = Vec::with_capacity(looked_at);
    for (i, &(a, _)) in first.iter().enumerate().take(n) {
        sums.extend(second.iter().take(n / (i + 1)).map(|&(b, _)| score(a, b)));
    }
    let (_, &mut last, _) = sums.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));

    let mut best = Vec::with_capacity(n);
    for &(a, row) in &first {
        let above = second.iter().take_while(|&&(b, _)| score(a, b) > last);
        let before = best.len();
        best.extend(above.map(|&(b, column)| Slot { score: score(a, b), id: id(row, column) }));
        if best.len() == before {
            break;
        }
    }
    // Rows in their own order are slots in theirs.
    let mut rows = first;
    rows.sort_unstable_by_key(|&(_, row)| row);
    for (a, row) in rows {
        let missing = n - best.len();
        if missing == 0 {
            break;
        }
        let above = second.partition_point(|&(b, _)| score(a, b) > last);
        let reach = second.partition_point(|&(b, _)| score(a, b) >= last);
        let mut columns: Vec<usize> = second[above..reach].iter().map(|&(_, column)| column).collect();
        columns.sort_unstable();
        best.extend(columns.into_iter().take(missing).map(|column| Slot { score: last, id: id(row, column) }));
    }
    best.sort_unstable_by(Slot::order);
    Ok(best)
}
