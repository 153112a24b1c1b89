//! The entries that may still be among a query's best k, from first-pass scores with proven bounds.
//!
//! Each candidate has the least and the greatest score it can really have. The k-th largest least score is a floor: who
//! cannot reach it is out. When candidates crowd at the floor (equal keys do), they are rescored canonically, which
//! decides; at the end all that are left are, so what comes out is exact.

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

/// An integer that orders like the float, NaN aside; integers are selected without branches.
fn ordered(x: f32) -> i32 {
    let bits = x.to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// The float of [`ordered`], which is its own inverse.
fn float(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31).cast_unsigned() >> 1).cast_signed()).cast_unsigned())
}

/// Candidates of one query.
pub(crate) struct Reservoir {
    k: usize,
    full: usize,
    floor: f32,
    candidates: Vec<Candidate>,
    lowers: Vec<i32>,
}

impl Reservoir {
    /// `loose`: bounds are wide, so that more of what has to be kept is not among the best; to rescore it again and again
    /// costs more than room.
    pub(crate) fn new(k: usize, loose: bool) -> Reservoir {
        Reservoir {
            k,
            full: k + k.clamp(64, 4096) * if loose { 2 } else { 1 },
            floor: f32::NEG_INFINITY,
            candidates: Vec::with_capacity(k.min(64) + 64),
            lowers: Vec::new(),
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

    /// Takes a candidate. Room is to be made with [`Reservoir::shrink`] when [`Reservoir::is_full`].
    #[inline]
    pub(crate) fn push(&mut self, lower: f32, upper: f32, place: Place) {
        if upper >= self.floor {
            self.candidates.push(Candidate { lower, upper, place });
        }
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.candidates.len() >= self.full
    }

    /// Raises the floor; `exact` gives the canonical score and id of a place, asked where bounds do not decide enough.
    pub(crate) fn shrink(&mut self, exact: &mut impl FnMut(Place) -> (f32, i64)) {
        self.raise_floor();
        if self.candidates.len() > self.full - self.full / 4 {
            self.decide(exact);
        }
    }

    /// Raises the floor to the k-th largest least score, and drops who cannot reach it.
    fn raise_floor(&mut self) {
        if self.candidates.len() < self.k {
            return;
        }
        self.lowers.clear();
        self.lowers.extend(self.candidates.iter().map(|c| ordered(c.lower)));
        let at = self.lowers.len() - self.k;
        let (_, kth, _) = self.lowers.select_nth_unstable(at);
        self.floor = self.floor.max(float(*kth));
        self.candidates.retain(|c| c.upper >= self.floor);
    }

    /// Rescores what is left and keeps the best k, in order.
    pub(crate) fn decide(&mut self, exact: &mut impl FnMut(Place) -> (f32, i64)) -> Vec<Best> {
        let mut best = Vec::with_capacity(self.candidates.len());
        for candidate in &self.candidates {
            let (score, id) = exact(candidate.place);
            if !score.is_nan() {
                best.push(Best { score, id, place: candidate.place });
            }
        }
        if best.len() > self.k {
            best.select_nth_unstable_by(self.k, Best::order);
            best.truncate(self.k);
        }
        best.sort_unstable_by(Best::order);
        if let Some(last) = best.get(self.k - 1) {
            self.floor = self.floor.max(last.score);
        }
        let known = |b: &Best| Candidate { lower: b.score, upper: b.score, place: b.place };
        self.candidates.clear();
        self.candidates.extend(best.iter().map(known));
        best
    }

    /// Drops who cannot be among the best k; the places of those who are left.
    pub(crate) fn close(&mut self) -> impl Iterator<Item = Place> {
        self.raise_floor();
        self.candidates.iter().map(|c| c.place)
    }
}
