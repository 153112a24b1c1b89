//! The entries that may still be among a query's best k, from first-pass scores with proven bounds.
//!
//! Each candidate has the least and the greatest score it can really have. The k-th largest least score is a floor: who
//! cannot reach it is out. When candidates crowd at the floor (equal keys do), they are rescored canonically, which
//! decides; at the end all that are left are, so what comes out is exact.

use mnemex_kernels::{Kernels, PANEL};

/// Where an entry stands: index of its reference times 64, plus its row.
pub(crate) type Place = u64;

/// An entry and what is known of its score.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    lower: f32,
    upper: f32,
    place: Place,
}

/// One of the best k: the canonical score and the id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) score: f32,
    pub(crate) id: i64,
    pub(crate) place: Place,
}

impl Best {
    /// Larger score first, then the smaller id.
    pub(crate) fn order(&self, other: &Best) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

/// Sorts and keeps the best `k`. Numbers that order as scores do are sorted sooner than hits.
pub(crate) fn keep_best(hits: &mut Vec<Best>, k: usize, desk: &mut Desk) {
    let Desk { order, hits: from, .. } = desk;
    std::mem::swap(hits, from);
    order.clear();
    order.extend(from.iter().enumerate().map(|(at, hit)| {
        let bits = hit.score.to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        u64::from(!ascending) << 32 | at as u64
    }));
    order.sort_unstable();
    hits.clear();
    hits.reserve_exact(from.len());
    hits.extend(order.iter().map(|&at| from[at as u32 as usize]));
    for equal in hits.chunk_by_mut(|a, b| a.score.to_bits() == b.score.to_bits()) {
        if equal.len() > 1 {
            equal.sort_unstable_by_key(|hit| hit.id);
        }
    }
    hits.truncate(k);
}

/// What decides among candidates.
pub(crate) trait Judge {
    /// Brings near what [`Judge::exact`] reads.
    fn prepare(&self, places: &[Place]);
    /// Appends the canonical score and the id of each place.
    fn exact(&mut self, places: &[Place], out: &mut Vec<Best>);
    /// The id of a place.
    fn id(&self, place: Place) -> i64;
}

/// Room to work in, which reservoirs share.
#[derive(Default)]
pub(crate) struct Desk {
    lowers: Vec<f32>,
    places: Vec<Place>,
    order: Vec<u64>,
    hits: Vec<Best>,
}

/// Candidates of one query.
pub(crate) struct Reservoir {
    k: usize,
    /// Candidates at which the floor is raised, and the most of them.
    full: usize,
    most: usize,
    floor: f32,
    candidates: Vec<Candidate>,
    /// So many of the first candidates have their canonical score.
    decided: usize,
}

impl Reservoir {
    /// `loose`: bounds are wide, so that more of what has to be kept is not among the best; to rescore it again and again
    /// costs more than room.
    pub(crate) fn new(k: usize, loose: bool) -> Reservoir {
        let room = k.clamp(64, 4096);
        Reservoir {
            k,
            full: k + room,
            most: k + room * if loose { 4 } else { 1 },
            floor: f32::NEG_INFINITY,
            candidates: Vec::with_capacity(k.min(64) + 64),
            decided: 0,
        }
    }

    /// No entry with a smaller score is wanted.
    #[inline]
    pub(crate) fn floor(&self) -> f32 {
        self.floor
    }

    /// Notes that k entries are known to have a score of `floor` or more.
    pub(crate) fn raise_to(&mut self, floor: f32) {
        self.floor = self.floor.max(floor);
    }

    /// Takes a candidate that can reach the floor. Room is to be made with [`Reservoir::shrink`] when
    /// [`Reservoir::is_full`].
    #[inline]
    pub(crate) fn push(&mut self, lower: f32, upper: f32, place: Place) {
        self.candidates.push(Candidate { lower, upper, place });
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.candidates.len() >= self.full
    }

    /// Raises the floor; `judge` is asked where bounds do not decide enough.
    pub(crate) fn shrink(&mut self, kernels: &Kernels, desk: &mut Desk, judge: &mut impl Judge) {
        self.raise_floor(kernels, desk);
        if self.candidates.len() <= self.full - self.full / 4 {
            return;
        }
        if self.full < self.most {
            self.full = self.most.min(self.full + self.full / 2);
        } else {
            self.list(desk);
            judge.prepare(&desk.places);
            self.decide(desk, judge);
        }
    }

    /// Raises the floor to about the k-th largest least score, and drops who cannot reach it.
    pub(crate) fn raise_floor(&mut self, kernels: &Kernels, desk: &mut Desk) {
        if self.candidates.len() < self.k {
            return;
        }
        desk.lowers.clear();
        let mut least = self.floor;
        if least == f32::NEG_INFINITY {
            desk.lowers.extend(self.candidates.iter().map(|c| c.lower).filter(|&lower| lower > least));
            if desk.lowers.len() < self.k {
                return;
            }
            // All k of them reach the least.
            least = desk.lowers.iter().copied().fold(f32::INFINITY, f32::min);
        } else {
            // Only what is above the floor is of interest.
            desk.lowers.extend(self.candidates.iter().map(|c| if c.lower > least { c.lower } else { least }));
        }
        desk.lowers.resize(desk.lowers.len().next_multiple_of(PANEL), least);
        self.floor = self.floor.max((kernels.reached_by_one)(&desk.lowers, self.k));
        let (mut kept, mut decided) = (0, 0);
        for at in 0..self.candidates.len() {
            let candidate = self.candidates[at];
            self.candidates[kept] = candidate;
            let stays = usize::from(candidate.upper >= self.floor);
            kept += stays;
            decided += if at < self.decided { stays } else { 0 };
        }
        self.candidates.truncate(kept);
        self.decided = decided;
    }

    /// The places whose canonical score is not known.
    fn list(&self, desk: &mut Desk) {
        desk.places.clear();
        desk.places.extend(self.candidates[self.decided..].iter().map(|c| c.place));
    }

    /// Rescores what is left and keeps the best k, in order.
    pub(crate) fn decide(&mut self, desk: &mut Desk, judge: &mut impl Judge) -> Vec<Best> {
        let mut best = Vec::with_capacity(self.candidates.len());
        self.list(desk);
        judge.exact(&desk.places, &mut best);
        best.retain(|b| !b.score.is_nan());
        let known = |c: &Candidate| Best { score: c.lower, id: judge.id(c.place), place: c.place };
        best.extend(self.candidates[..self.decided].iter().map(known));
        keep_best(&mut best, self.k, desk);
        if let Some(last) = best.get(self.k - 1) {
            self.floor = self.floor.max(last.score);
        }
        self.candidates.clear();
        let exact = |b: &Best| Candidate { lower: b.score, upper: b.score, place: b.place };
        self.candidates.extend(best.iter().map(exact));
        self.decided = self.candidates.len();
        best
    }

    /// Drops who cannot be among the best k, and brings near what decides about the others.
    pub(crate) fn close(&mut self, kernels: &Kernels, desk: &mut Desk, judge: &impl Judge) {
        self.raise_floor(kernels, desk);
        self.list(desk);
        judge.prepare(&desk.places);
    }
}
