//! Canonical scores of what a first pass left: they decide.

use mnemex_kernels::Kernels;

use crate::block::Schema;
use crate::layout::Vector;
use crate::query::Unit;
use crate::reservoir::{Best, Judge, Place};

/// Keys that are decoded before they are scored, together.
pub(crate) const TOGETHER: usize = 16;

/// Scores entries canonically for one query.
pub(crate) struct Rescorer<'a, 's> {
    pub(crate) kernels: &'static Kernels,
    pub(crate) schema: &'s Schema,
    pub(crate) unit: &'s Unit<'s>,
    pub(crate) query: &'a [f32],
    pub(crate) norm: f64,
    /// Room for [`TOGETHER`] keys.
    pub(crate) keys: &'a mut [f32],
    pub(crate) rescored: &'a mut u64,
}

impl<'s> Rescorer<'_, 's> {
    fn key(&self, place: Place) -> Vector<'s> {
        self.unit.refs[(place / 64) as usize].r.block.key(self.schema, (place % 64) as usize)
    }
}

impl Judge for Rescorer<'_, '_> {
    fn prepare(&self, places: &[Place]) {
        places.iter().for_each(|&place| self.key(place).prefetch());
    }

    fn exact(&mut self, places: &[Place], out: &mut Vec<Best>) {
        *self.rescored += places.len() as u64;
        let dim = self.schema.key.dim;
        for places in places.chunks(TOGETHER) {
            for (at, &place) in places.iter().enumerate() {
                let key = self.key(place);
                key.decode(&mut self.keys[at * dim..][..dim]);
            }
            let mut scores = [0.0; TOGETHER];
            let (scores, keys) = (&mut scores[..places.len()], &self.keys[..places.len() * dim]);
            (self.kernels.score)(self.schema.metric, keys, self.query, self.norm, scores);
            let best = |(&place, &score): (&Place, &f32)| Best { score, id: self.id(place), place };
            out.extend(places.iter().zip(&*scores).map(best));
        }
    }

    fn id(&self, place: Place) -> i64 {
        self.unit.refs[(place / 64) as usize].r.id((place % 64) as usize)
    }
}
