//! The oldest go first.

use super::{Decided, EvictPolicy, Plan};
use crate::lane::Edit;
use crate::write::View;

/// First in, first out, by id.
pub struct Fifo;

impl EvictPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn plan(&self, view: View, decided: Decided, over: usize) -> Plan {
        // Nobody stays: a floor past everything that arrives.
        let end = view.arrival.id_lo + view.arrival.rows.len() as i64;
        let id = decided.nth_oldest(&view, over).unwrap_or(end);
        Plan { edits: vec![Edit::Floor { id }], line: None }
    }
}
