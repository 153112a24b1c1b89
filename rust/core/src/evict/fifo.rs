//! The oldest go first.

use super::EvictPolicy;
use crate::lane::Edit;
use crate::write::View;

/// First in, first out, by id.
pub struct Fifo;

impl EvictPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn plan(&self, view: View, over: usize) -> Vec<Edit> {
        let arriving = over.saturating_sub(view.lane.len());
        let id = match view.lane.nth_oldest(over) {
            Some(id) => id,
            None => view.arrival.id_lo + arriving as i64,
        };
        vec![Edit::Floor { id }]
    }
}
