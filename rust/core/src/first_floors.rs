//! First floors: scores that k entries of some blocks are known to reach, for each query. Without, the first blocks of a
//! scan would pass whole.
//!
//! Rows are taken in groups, of which only the largest score is kept: what k groups reach, k rows reach, and with many more
//! groups than k hardly any of the best k share one.

use mnemex_kernels::PANEL;
use mnemex_kernels::many::{self, Coded, Many};
use mnemex_kernels::select::Maxima;

use crate::block::{BLOCK_ROWS, Block};
use crate::error::{Result, filled};
use crate::first_pass::{FirstPass, Loaded, Scratch, rule};
use crate::form::Form;

/// So many times k groups of rows are looked at.
const MORE_GROUPS: usize = 4;

/// Codes say too little of keys where more than k groups and this share of all may hold one of the best k, in the mean over
/// queries. Of normal numbers it is less than twice k of eight times k.
const LOOSE_GROUPS: (usize, usize) = (3, 8);

/// What some blocks say.
pub(crate) struct Reached {
    pub(crate) floors: Vec<f32>,
    /// Whether these scores say too little to be worth reading: far more groups than k can have one of the best k.
    pub(crate) is_loose: bool,
}

impl FirstPass<'_> {
    /// What k entries of these blocks reach; nothing where that takes more blocks.
    pub(crate) fn reached(&self, blocks: &[&Block], k: usize, scratch: &mut Scratch) -> Result<Option<Reached>> {
        if let Form::Many(many, queries) | Form::Fresh(many, queries, _) = &self.form {
            return self.reached_in_codes(many, queries, blocks, k, scratch);
        }
        let n = self.bounds.len();
        let reach = blocks.iter().map(|block| block.reach()).fold(0.0, f32::max);
        let mut lost = 0.0f32;
        let mut floors = Vec::with_capacity(n.next_multiple_of(PANEL));
        let enough = |&per: &usize| blocks.iter().map(|block| block.len() / per).sum::<usize>() >= MORE_GROUPS * k;
        let Some(per) = [16, 4, 1].into_iter().find(enough) else { return Ok(None) };
        let groups = blocks.iter().map(|block| block.len().div_ceil(per)).sum::<usize>();
        let mut maxima = filled(f32::NEG_INFINITY, groups * n.next_multiple_of(PANEL))?;
        let mut at = 0;
        for block in blocks {
            let (keys, loses) = self.load(block, scratch)?;
            lost = lost.max(loses);
            for first in (0..n).step_by(self.group()) {
                let out = Maxima { out: &mut maxima[first * groups..], groups, first: at, per };
                match (&self.form, keys) {
                    (Form::Short(short, queries), Loaded::Short(keys)) => {
                        (short.maxima)(keys, self.shorts(queries, first), out);
                    }
                    (_, Loaded::Panels(keys)) => {
                        (self.kernels.maxima)(rule(self.schema.metric), keys, self.floats(first), out);
                    }
                    // Nobody asks: see `is_few`.
                    _ => return Ok(None),
                }
            }
            at += block.len().div_ceil(per);
        }
        for panel in maxima.chunks_exact(groups * PANEL) {
            let mut reached = [0.0; PANEL];
            (self.kernels.reached_by)(panel, k, &mut reached);
            floors.extend(reached);
        }
        floors.truncate(n);
        floors
            .iter_mut()
            .enumerate()
            .for_each(|(query, score)| *score = self.bounds.at(query, reach, lost).lower(*score));
        Ok(Some(Reached { floors, is_loose: false }))
    }

    fn reached_in_codes(
        &self,
        many: &Many,
        queries: &Coded,
        blocks: &[&Block],
        k: usize,
        scratch: &mut Scratch,
    ) -> Result<Option<Reached>> {
        let n = self.bounds.len();
        let full: Vec<&&Block> = blocks.iter().filter(|block| block.len() == BLOCK_ROWS).collect();
        // Blocks of which groups are made together: as many as leave enough groups, few of which stay in the cache.
        let together = (full.len() * many::GROUPS / (2 * MORE_GROUPS * k)).max(1);
        let groups = full.len().div_ceil(together) * many::GROUPS;
        if groups < MORE_GROUPS * k {
            return Ok(None);
        }
        // Not a power of two from query to query, which would compete for the same lines of the cache.
        let stride = groups + many::GROUPS;
        let mut maxima = filled(f32::NEG_INFINITY, stride * n)?;
        let mut slacks = 0.0;
        for (at, block) in full.iter().enumerate() {
            let (keys, _) = self.load(block, scratch)?;
            let (Loaded::Many(keys) | Loaded::Fresh(keys, _)) = keys else { return Ok(None) };
            slacks += keys.slack.iter().sum::<f32>() / BLOCK_ROWS as f32;
            (many.maxima)(keys, queries.all(), &mut maxima[at / together * many::GROUPS..], stride);
        }
        let slack = slacks / full.len() as f32;
        let (mut over, most) = (0, n * (k + groups * LOOSE_GROUPS.0 / LOOSE_GROUPS.1));
        let mut floors = Vec::with_capacity(n);
        for (query, of_one) in maxima.chunks_exact(stride).map(|of_one| &of_one[..groups]).enumerate() {
            let score = (self.kernels.reached_by_one)(of_one, k);
            let least = score - queries.width(query, slack);
            over += of_one.iter().map(|&score| usize::from(score >= least)).sum::<usize>();
            floors.push(queries.floor(query, score));
        }
        Ok(Some(Reached { floors, is_loose: over > most }))
    }
}
