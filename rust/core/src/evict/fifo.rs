//! The oldest go first.

use super::{Decided, EvictPolicy};
use crate::lane::Edit;
use crate::write::View;

/// First in, first out, by id.
pub struct Fifo;

impl EvictPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn plan(&self, view: View, decided: Decided, over: usize) -> Vec<Edit> {
        // A place in line behind the victims; each entry that leaves anyway and stands before it moves it by one.
        let mut place = over;
        let in_lane = loop {
            let Some(id) = view.lane.nth_oldest(place) else { break None };
            let gone = decided.leaving.partition_point(|&leaving| leaving <= id);
            if over + gone == place {
                break Some(id);
            }
            place = over + gone;
        };
        let id = in_lane.or_else(|| {
            let arriving = over - (view.lane.len() - decided.leaving.len());
            let token = decided.runs.iter().flat_map(Clone::clone).nth(arriving);
            token.map(|token| view.arrival.id_lo + token as i64)
        });
        // Nobody stays: a floor past everything that arrives.
        vec![Edit::Floor { id: id.unwrap_or(view.arrival.id_lo + view.arrival.rows.len() as i64) }]
    }
}
