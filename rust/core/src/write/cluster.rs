//! Clusters of keys that grow as tokens come, and a sample of each (SubGen, Zandieh et al. 2024, arXiv 2402.06082).
//!
//! A token within delta of the nearest representative joins its cluster; another one founds a cluster and represents it from
//! then on. The representative stands for itself, an even sample of the other members (Vitter's algorithm R, without
//! replacement) for all of them. Lots are hashes of head and id: no state, and the same however a stream is cut into
//! commits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mnemex_kernels::canonical::Metric;

use super::nearest::{Near, Seekers, nearest};
use super::{LanePlan, Runs, View, WritePolicy, arriving, decoded};
use crate::config::Clustering;
use crate::error::Result;
use crate::evict::lot;
use crate::lane::Edit;
use crate::list::List;
use crate::rescore::TOGETHER;

/// Join a cluster or found one.
pub struct Cluster(pub Clustering);

/// A cluster that tokens join at this commit.
struct Growing {
    /// Tokens in it, its representative included.
    count: u64,
    /// The sample of all but the representative, ascending.
    samples: Vec<i64>,
    /// Tokens that joined at this commit.
    joined: Vec<usize>,
}

impl Cluster {
    /// Whether a representative is near enough.
    fn is_near(&self, near: Option<Near>) -> Option<i64> {
        near.filter(|near| f64::from(near.score) >= -(self.0.delta * self.0.delta)).map(|near| near.id)
    }

    /// Draws whether a token that joins a cluster is among its sample, and whose place it takes.
    fn sample(&self, view: &View, cluster: &mut Growing, id: i64) -> Option<i64> {
        let most = usize::try_from(self.0.reservoir).unwrap_or(usize::MAX);
        // Members that a sample stands for, this one included.
        let members = cluster.count - 1;
        let place = if members <= self.0.reservoir {
            cluster.samples.len()
        } else {
            (lot(self.0.seed, [view.head as u64, 1, id as u64]) * members as f64) as usize
        };
        if place >= most {
            return None;
        }
        // Where an evict policy or a deletion has left places free, one of these is taken.
        let displaced = (place < cluster.samples.len()).then(|| cluster.samples.remove(place));
        cluster.samples.push(id);
        displaced
    }

    /// Samples of every cluster of the lane, by representative, ascending.
    fn samples(view: &View) -> HashMap<i64, Vec<i64>> {
        let mut samples: HashMap<i64, Vec<i64>> = HashMap::new();
        for r in view.lane.lists().iter().flat_map(List::refs) {
            for id in r.live_slots().map(|slot| r.id(slot)) {
                if let Some(founder) = view.lane.used(id).founder()
                    && view.replaced.binary_search(&id).is_err()
                {
                    samples.entry(founder).or_default().push(id);
                }
            }
        }
        samples.values_mut().for_each(|ids| ids.sort_unstable());
        samples
    }
}

impl WritePolicy for Cluster {
    fn name(&self) -> &'static str {
        "cluster"
    }

    fn plan(&self, view: View) -> Result<LanePlan> {
        let (dim, id_lo) = (view.schema.key.dim, view.arrival.id_lo);
        let tokens = arriving(&view);
        let mut keys = Vec::with_capacity(tokens.len() * dim);
        for &token in &tokens {
            keys.extend(decoded(&view, id_lo + token as i64).0);
        }
        let seekers = Seekers::new(&view, Metric::L2, dim, keys)?;
        let least = -(self.0.delta * self.0.delta);
        let least = if f64::from(least as f32) > least { (least as f32).next_down() } else { least as f32 };
        let represents = |id: i64| view.lane.used(id).founder().is_none();
        let near = nearest(&view, &seekers, least, &represents)?;
        let mut before = Cluster::samples(&view);
        let (mut clusters, mut order): (HashMap<i64, Growing>, Vec<i64>) = (HashMap::new(), Vec::new());
        // Representatives that arrive.
        let (mut founders, mut founder_keys): (Vec<i64>, Vec<f32>) = (Vec::new(), Vec::new());
        let (mut edits, mut scores, mut ended) = (Vec::new(), [0.0; TOGETHER], Vec::new());
        for (at, (&token, mut near)) in tokens.iter().zip(near).enumerate() {
            view.ticker.tick()?;
            let id = id_lo + token as i64;
            for (founders, keys) in founders.chunks(TOGETHER).zip(founder_keys.chunks(TOGETHER * dim)) {
                seekers.exact(&view, at, keys, &mut scores[..founders.len()]);
                for (&id, &score) in founders.iter().zip(&scores) {
                    near = Some(Near::nearer(near, Near { score, id }));
                }
            }
            let Some(founder) = self.is_near(near) else {
                founders.push(id);
                founder_keys.extend_from_slice(seekers.get(at));
                continue;
            };
            let cluster = match clusters.entry(founder) {
                Entry::Occupied(cluster) => cluster.into_mut(),
                Entry::Vacant(place) => {
                    order.push(founder);
                    let count = if founder < id_lo { view.lane.used(founder).count.max(1) } else { 1 };
                    let samples = before.remove(&founder).unwrap_or_default();
                    place.insert(Growing { count, samples, joined: Vec::new() })
                }
            };
            cluster.count = cluster.count.saturating_add(1);
            cluster.joined.push(token);
            ended.extend(self.sample(&view, cluster, id));
        }
        edits.extend(ended.into_iter().filter(|&id| id < id_lo).map(|id| Edit::Replace { id }));
        let mut appended: Vec<usize> = founders.iter().map(|id| (id - id_lo) as usize).collect();
        for id in order {
            let Some(Growing { samples, joined, .. }) = clusters.remove(&id) else { continue };
            let is_sample = |token: &usize| samples.binary_search(&(id_lo + *token as i64)).is_ok();
            let (sampled, tokens): (Vec<usize>, Vec<usize>) = joined.into_iter().partition(is_sample);
            appended.extend(&sampled);
            edits.push(Edit::Join { id, tokens, sampled });
        }
        appended.sort_unstable();
        let mut runs = Runs::default();
        appended.into_iter().for_each(|token| runs.push(token));
        Ok((edits, runs.0))
    }
}
