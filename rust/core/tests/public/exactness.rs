//! Search beside the oracle: the ids and the bits of the scores, on every instruction set.

use mnemex_core::config::{ScanCodec, Values};
use mnemex_core::query::{Bitmaps, Query};
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config, Metric};
use mnemex_kernels::Kernels;
use mnemex_oracle as oracle;
use ndarray::Array4;

use crate::data::{Data, Random};
use crate::lanes::{METRICS, ask, config, entries, every_table, search, write};

/// One lane of some data and the queries that it is asked.
struct Trial {
    data: Data,
    metric: (Metric, oracle::Metric),
    codec: Codec,
    keys: Array4<f32>,
    queries: Array4<f32>,
    deleted: Vec<i64>,
}

impl Trial {
    fn new(seed: u64, data: Data, metric: (Metric, oracle::Metric), [n, dim, n_queries]: [usize; 3]) -> Trial {
        let mut random = Random::new(seed);
        let codec = Codec::ALL[random.below(3)];
        Trial {
            data,
            metric,
            // float16 refuses what it cannot hold.
            codec: if data == Data::HugeAndTiny && codec == Codec::F16 { Codec::Bf16 } else { codec },
            keys: data.array(&mut random, [1, 1, n, dim]),
            queries: data.array(&mut random, [1, 1, n_queries, dim]),
            // Here and there, or in a row, so that whole blocks stay.
            deleted: match random.below(4) {
                0 => Vec::new(),
                1 => (n / 3..n / 2).map(|id| id as i64).collect(),
                some => (0..some * n / 8).map(|_| random.below(n) as i64).collect(),
            },
        }
    }

    fn bank(&self, kernels: &'static Kernels, scan_codec: Option<ScanCodec>) -> Bank {
        let config = config(self.metric.0, self.keys.dim().3, Values::None);
        let config = Config { key_codec: Some(self.codec), scan_codec, ..config };
        let bank = Bank::with_kernels(config, 1, kernels).unwrap();
        let n = self.keys.dim().2;
        write(&bank, &self.keys, None, [n / 3, n - n / 3]);
        bank.delete(&self.deleted, None).unwrap();
        bank
    }

    /// The answers for several k on every table are the oracle's over the entries that each query may see.
    fn holds<'a>(&'a self, ks: &[usize], narrow: impl Fn(Query<'a>) -> Query<'a>, sees: impl Fn(usize, i64) -> bool) {
        let bank = self.bank(Kernels::best().unwrap(), None);
        let entries = entries(&bank.snapshot(), 0, 0);
        let most = ks.iter().copied().max().unwrap();
        let n_queries = self.queries.dim().2;
        let truth: Vec<Vec<(f32, i64)>> = (0..n_queries)
            .map(|t| {
                let seen = entries.iter().filter(|entry| sees(t, entry.id));
                let keys: Vec<_> = seen.map(|entry| (entry.id, entry.key.clone())).collect();
                let q: Vec<f32> = self.queries.slice(ndarray::s![0, 0, t, ..]).to_vec();
                oracle::search(self.metric.1, &keys, &q, most)
            })
            .collect();
        let scans = ScanCodec::ALL.into_iter().filter(|_| self.metric.0 != Metric::L2).map(Some);
        let scans: Vec<_> = scans.chain([None]).collect();
        for (kernels, scan) in every_table().flat_map(|kernels| scans.iter().map(move |scan| (kernels, *scan))) {
            let snapshot = self.bank(kernels, scan).snapshot();
            let query = narrow(ask(&self.queries));
            for &k in ks {
                let hits = search(&snapshot, &query, k, &Work::ALONE);
                for (t, best) in truth.iter().enumerate() {
                    let mut want: Vec<_> = best.iter().take(k).map(|(score, id)| (score.to_bits(), *id)).collect();
                    want.resize(k, (f32::NEG_INFINITY.to_bits(), -1));
                    let got: Vec<_> =
                        (t * k..(t + 1) * k).map(|at| (hits.scores[at].to_bits(), hits.ids[at])).collect();
                    let Trial { data, metric, codec, .. } = self;
                    let dim = self.keys.dim().3;
                    let isa = kernels.isa;
                    assert_eq!(got, want, "{data:?} {:?} {codec:?} {scan:?} dim={dim} k={k} {isa:?}", metric.0);
                }
            }
        }
    }
}

#[test]
fn search_is_exact_in_every_dimension() {
    for dim in 1..=130 {
        for (at, metric) in METRICS.into_iter().enumerate() {
            let data = Data::ALL[(dim + at) % 7];
            Trial::new(dim as u64, data, metric, [90, dim, 5]).holds(&[1, 7, 200], |all| all, |_, _| true);
        }
    }
}

#[test]
fn search_is_exact_on_every_kind_of_data_for_k_around_the_number_of_entries() {
    for data in Data::ALL {
        for metric in METRICS {
            for (seed, n) in [(1, 1), (2, 17), (3, 64), (4, 321)] {
                let ks = [1, 2, n.max(2) - 1, n, n + 1, n + 70];
                Trial::new(seed, data, metric, [n, 24, 19]).holds(&ks, |all| all, |_, _| true);
            }
        }
    }
}

#[test]
fn search_is_exact_where_many_entries_crowd_at_the_last_place() {
    for data in [Data::Duplicated, Data::Constant, Data::NearTies, Data::Clustered] {
        for metric in METRICS {
            Trial::new(5, data, metric, [4500, 8, 2]).holds(&[1, 32, 100, 3000], |all| all, |_, _| true);
        }
    }
}

#[test]
fn search_of_many_queries_over_many_blocks_is_exact() {
    for (seed, data) in (6..).zip(Data::ALL) {
        for metric in METRICS {
            Trial::new(seed, data, metric, [3000, 40, 67]).holds(&[1, 32, 200], |all| all, |_, _| true);
        }
    }
}

#[test]
fn a_query_sees_ids_below_its_own_before() {
    let n = 150;
    for (seed, data) in (0..).zip(Data::ALL) {
        let mut random = Random::new(seed);
        let mut before: Vec<i64> = (0..70).map(|_| random.below(n + 20) as i64).collect();
        before.extend([i64::MIN, -1, 0, i64::MAX]);
        for metric in METRICS {
            let trial = Trial::new(seed, data, metric, [n, 20, before.len()]);
            trial.holds(&[3, n], |all| Query { before: Some(&before), ..all }, |t, id| id < before[t]);
            // All that a block holds may lie beyond every query's sight.
            let nothing = vec![i64::MIN; before.len()];
            trial.holds(&[3], |all| Query { before: Some(&nothing), ..all }, |_, _| false);
        }
    }
}

#[test]
fn a_query_sees_ids_that_its_bitmap_allows() {
    let n = 150;
    for (seed, data) in (0..).zip(Data::ALL) {
        let mut random = Random::new(seed);
        for ids in [0, 1, 64, n, n + 9] {
            let allowed: Vec<bool> = (0..ids).map(|_| random.below(3) == 0).collect();
            for metric in METRICS {
                let sees = |_, id: i64| allowed.get(id as usize) == Some(&true);
                let bitmaps = Bitmaps { bits: &allowed, rows: 1, ids };
                let trial = Trial::new(seed, data, metric, [n, 20, 18]);
                trial.holds(&[3, n], |all| Query { allowed: Some(bitmaps), ..all }, sees);
            }
        }
    }
}
