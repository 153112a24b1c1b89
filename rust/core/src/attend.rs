//! Softmax attention over the best k entries, or over every entry, with its log-sum-exp.

use mnemex_kernels::softmax::Logit;

use crate::bank::Snapshot;
use crate::bias::{Bias, ColumnBias, biased};
use crate::block::Schema;
use crate::config::{NonFinite, Values};
use crate::dense;
use crate::error::{Error, Kind, Result, ensure, filled, room_for};
use crate::input::all_finite;
use crate::query::{Queries, Query, Unit};
use crate::reader::Reader;
use crate::reservoir::Best;
use crate::search::Hits;
use crate::work::Work;

/// How scores become weights.
pub struct Attention<'a> {
    /// What is read of each query's lane; None: every entry. Its k is clamped to the longest lane.
    pub k: Option<Reader>,
    /// From score to logit.
    pub logit: Logit,
    /// What is added to the logits.
    pub bias: Bias<'a>,
    /// Whether to report what was attended.
    pub with_hits: bool,
}

/// Partial attention: to be merged with other parts by log-sum-exp.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// `[rows, query_heads, T]`
    pub shape: [usize; 3],
    /// `[rows, query_heads, T, value_dim]`; 0 over nothing.
    pub out: Vec<f32>,
    /// Natural log of the sum of exponentials of the logits; -inf over nothing.
    pub lse: Vec<f32>,
    /// What was attended, and each hit's softmax weight among the k.
    pub hits: Option<(Hits, Vec<f32>)>,
}

/// The softmax of the hits of some queries.
struct Weighed {
    /// `[n, value_dim]`
    out: Vec<f32>,
    /// `[n]`
    lse: Vec<f32>,
    /// `[n, k]`, where somebody asks.
    mass: Vec<f32>,
}

impl Snapshot {
    /// Attention over exactly the entries that [`Snapshot::search`] takes.
    ///
    /// # Errors
    /// When anything about the call is wrong, or the caller interrupts.
    pub fn attend(&self, query: &Query, attention: &Attention, work: &Work) -> Result<Partial> {
        let config = self.config();
        ensure(config.values != Values::None, Kind::State, || {
            "this bank stores no values to attend to: make it with value_dim=, or search it".into()
        })?;
        check_logit(&attention.logit)?;
        let room = attention.k.map_or(Ok(1), |reader| reader.check().and(reader.room(config)))?;
        let queries = Queries::check(self, query)?;
        let refuse = query.nonfinite.unwrap_or(config.nonfinite) == NonFinite::Raise;
        let column = attention.bias.check(self, queries.heads, refuse)?;
        let longest = self.version.longest();
        let reader = attention.k.unwrap_or(longest.into());
        let most = if reader.pages.is_some() { self.most_pages(&queries, work)? } else { longest };
        let reader = Reader { k: reader.k.min(most), ..reader };
        let n = queries.len();
        let told = attention.with_hits || reader.has_neighbours() || reader.pages.is_some();
        let places = if told { reader.places(n, room)? } else { reader.k };
        let dim = config.value_dim();
        let shape = [queries.rows.len(), queries.heads, queries.tokens];
        let mut partial = Partial { shape, out: filled(0.0, n * dim)?, lse: filled(f32::NEG_INFINITY, n)?, hits: None };
        if let Some(schema) = self.version.schema.as_ref().filter(|_| reader.k > 0) {
            if reader.k == longest && reader.takes_all() && !attention.with_hits {
                let how = dense::How { logit: attention.logit, bias: column.as_ref() };
                dense::attend(self, schema, &queries, how, work, &mut partial)?;
            } else {
                let how = (attention, column.as_ref());
                self.attend_best(schema, &queries, (reader, places), how, work, &mut partial)?;
            }
        } else if attention.with_hits {
            partial.hits = Some((self.hits(&queries, places, &[])?, filled(0.0, n * places)?));
        }
        if let Bias::Heads(bias) = attention.bias {
            partial.add(bias);
        }
        for at in (0..n).filter(|&at| !all_finite(queries.get(at))) {
            partial.out[at * dim..][..dim].fill(f32::NAN);
            partial.lse[at] = f32::NAN;
        }
        Ok(partial)
    }

    fn attend_best(
        &self,
        schema: &Schema,
        queries: &Queries,
        (reader, k): (Reader, usize),
        (attention, bias): (&Attention, Option<&ColumnBias>),
        work: &Work,
        partial: &mut Partial,
    ) -> Result<()> {
        let units = self.read(schema, queries, reader, true, work)?;
        let (dim, asked) = (self.config().value_dim(), if attention.with_hits { k } else { 0 });
        let each = 4 * (1 + dim + asked);
        room_for(queries.len().saturating_mul(each), || format!("weighing {k} hits of {} queries", queries.len()))?;
        let work = work.for_size(queries.len() * k * dim);
        let weighed = work.map(units.len(), |at, ticker| {
            let (unit, best) = &units[at];
            let row = &*self.version.rows[queries.rows[unit.row]];
            let lane = &row.lanes[queries.head(unit)];
            let n = best.len();
            let mut weighed = Weighed { out: vec![0.0; n * dim], lse: vec![0.0; n], mass: vec![0.0; n * asked] };
            let (mut mass, mut scratch) = (Vec::new(), vec![0.0; dim]);
            // The values of one query come near while the one before it is weighed.
            let near = |hits: &Vec<Best>| {
                hits.iter()
                    .filter(|hit| hit.id >= 0)
                    .filter_map(|hit| unit.value(schema, hit))
                    .for_each(|value| value.prefetch())
            };
            best.first().into_iter().for_each(near);
            for (at, hits) in best.iter().enumerate() {
                ticker.tick()?;
                best.get(at + 1).into_iter().for_each(near);
                let (hits, places) = reader.distinct(hits);
                mass.clear();
                mass.extend(hits.iter().map(|hit| attention.logit.of(hit.score)));
                if let Some(bias) = bias {
                    let ids: Vec<i64> = hits.iter().map(|hit| hit.id).collect();
                    mass.iter_mut().zip(bias.of((row, lane), &ids)?).for_each(|(z, bias)| *z = biased(*z, bias));
                }
                let out = &mut weighed.out[at * dim..][..dim];
                weighed.lse[at] = self.weigh(schema, unit, &hits, &mut mass, out, &mut scratch);
                if attention.with_hits {
                    let to = &mut weighed.mass[at * k..][..k];
                    match places {
                        None => to[..mass.len()].copy_from_slice(&mass),
                        Some(places) => places.iter().zip(&mass).for_each(|(&place, &mass)| to[place] = mass),
                    }
                }
            }
            Ok(weighed)
        })?;
        let mut masses = filled(0.0, queries.len() * asked)?;
        for ((unit, _), weighed) in units.iter().zip(weighed) {
            partial.out[unit.first * dim..][..weighed.out.len()].copy_from_slice(&weighed.out);
            partial.lse[unit.first..][..weighed.lse.len()].copy_from_slice(&weighed.lse);
            masses[unit.first * asked..][..weighed.mass.len()].copy_from_slice(&weighed.mass);
        }
        if attention.with_hits {
            let best: Vec<_> = units.into_iter().flat_map(|(_, best)| best).collect();
            partial.hits = Some((self.hits(queries, k, &best)?, masses));
        }
        Ok(())
    }

    /// Softmax over hits in their order: `mass` is their logits, which come from canonical scores, and becomes
    /// their weights; `out`, zeros before, the sum of their values. Returns the log-sum-exp.
    fn weigh(
        &self,
        schema: &Schema,
        unit: &Unit,
        best: &[Best],
        mass: &mut [f32],
        out: &mut [f32],
        scratch: &mut [f32],
    ) -> f32 {
        let max = mass.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY && !mass.iter().any(|z| z.is_nan()) {
            mass.fill(0.0);
            return max;
        }
        let mut sum = 0.0;
        for z in &mut *mass {
            *z = mnemex_kernels::softmax::exp(*z - max);
            sum += *z;
        }
        for (hit, weight) in best.iter().zip(mass) {
            *weight /= sum;
            let Some(value) = unit.value(schema, hit) else { continue };
            let value = value.floats(scratch);
            // What weighs nothing does not matter, whatever it is: 0 times infinity would be NaN.
            if *weight != 0.0 || all_finite(value) {
                (self.shared.kernels.add_scaled)(*weight, value, out);
            }
        }
        max + sum.ln()
    }
}

impl Partial {
    /// Adds a number per query head to the logits of what was attended: only the log-sum-exp moves, unless it is minus
    /// infinity, which leaves nothing.
    fn add(&mut self, bias: &[f32]) {
        let [_, heads, tokens] = self.shape;
        let dim = self.out.len().checked_div(self.lse.len()).unwrap_or(0);
        for at in 0..self.lse.len() {
            let bias = bias[at / tokens % heads];
            self.lse[at] += bias;
            if bias == f32::NEG_INFINITY {
                self.lse[at] = bias;
                self.out[at * dim..][..dim].fill(0.0);
                if let Some((hits, mass)) = &mut self.hits {
                    let k = hits.shape[3];
                    mass[at * k..][..k].fill(0.0);
                }
            }
        }
    }
}

fn check_logit(logit: &Logit) -> Result<()> {
    ensure(logit.scale.is_finite(), Kind::Argument, || {
        format!("scale={} must be a finite number; None is key_dim ** -0.5", logit.scale)
    })?;
    match logit.softcap {
        Some(cap) if !(cap > 0.0 && cap.is_finite()) => {
            Err(Error::new(Kind::Argument, format!("softcap={cap} must be a positive number, or None")))
        }
        _ => Ok(()),
    }
}
