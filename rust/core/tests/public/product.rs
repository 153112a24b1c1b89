//! Product keys beside a scan of every pair, on every instruction set and number of threads.

use mnemex_core::Kind;
use mnemex_core::product::{Bag, SubKeys, Weighing};
use mnemex_core::work::Work;
use mnemex_kernels::product::Table;
use mnemex_kernels::single::Format;
use mnemex_oracle as oracle;

use crate::data::{Data, Random};
use crate::lanes::{bits, every_table};

/// Half keys of two heads, and queries.
struct Trial {
    keys: [Vec<f32>; 2],
    n: [usize; 2],
    dim: [usize; 2],
    queries: Vec<f32>,
}

const HEADS: usize = 2;

impl Trial {
    fn new(data: [Data; 2], n: [usize; 2], dim: [usize; 2], tokens: usize) -> Trial {
        let mut random = Random::new((n[0] * 31 + dim[1]) as u64);
        let keys = [0, 1].map(|half| {
            let keys = data[half].array(&mut random, [1, HEADS, n[half], dim[half]]);
            keys.into_raw_vec_and_offset().0
        });
        let queries = [0, 1].map(|half| data[half].array(&mut random, [tokens, HEADS, 1, dim[half]]));
        let [first, second] = &queries;
        let mut all = Vec::new();
        for (first, second) in first.rows().into_iter().zip(second.rows()) {
            all.extend(first.iter().chain(second));
        }
        Trial { keys, n, dim, queries: all }
    }

    fn sub_keys(&self) -> SubKeys<'_> {
        SubKeys { keys: self.keys.each_ref().map(Vec::as_slice), heads: HEADS, n: self.n, dim: self.dim }
    }

    /// The best of every pair, scored in float64.
    fn scan(&self, query: usize, k: usize) -> Vec<(f32, i64)> {
        let head = query % HEADS;
        let width = self.dim[0] + self.dim[1];
        let (first, second) = self.queries[query * width..][..width].split_at(self.dim[0]);
        let sums = |half: usize, q: &[f32]| -> Vec<f64> {
            let keys = self.keys[half].chunks(self.dim[half]).skip(head * self.n[half]).take(self.n[half]);
            let products =
                keys.map(|x| x.iter().zip(q).map(|(&x, &q)| f64::from(x) * f64::from(q)).collect::<Vec<_>>());
            products.map(|terms| oracle::fixed_sum(&terms)).collect()
        };
        let (rows, columns) = (sums(0, first), sums(1, second));
        let mut all = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            for (j, column) in columns.iter().enumerate() {
                let score = (row + column) as f32;
                all.push((if score == 0.0 { 0.0 } else { score }, (i * self.n[1] + j) as i64));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.truncate(k);
        all
    }

    fn holds(&self, ks: &[usize]) {
        let n = self.queries.len() / (self.dim[0] + self.dim[1]);
        for kernels in every_table() {
            for &k in ks {
                for threads in [1, 3] {
                    let work = Work { threads, ..Work::ALONE };
                    let got = self.sub_keys().lookup(kernels, &self.queries, k, &work).unwrap();
                    for query in 0..n {
                        let want = self.scan(query, k);
                        let (scores, ids) = (&got.scores[query * k..][..k], &got.ids[query * k..][..k]);
                        let (m, what) = (want.len(), (kernels.isa, self.n, self.dim, k, query));
                        assert_eq!(ids[..m], want.iter().map(|w| w.1).collect::<Vec<_>>(), "{what:?}");
                        assert_eq!(bits(&scores[..m]), bits(&want.iter().map(|w| w.0).collect::<Vec<_>>()), "{what:?}");
                        assert!(ids[m..].iter().all(|&id| id == -1), "{what:?}");
                        assert!(scores[m..].iter().all(|&score| score == f32::NEG_INFINITY), "{what:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_best_slots_are_those_of_a_scan_of_every_pair() {
    for data in Data::ALL {
        Trial::new([data, data], [70, 70], [9, 8], 17).holds(&[1, 32, 200]);
        Trial::new([data, Data::Gaussian], [33, 5], [3, 1], 3).holds(&[1, 7, 164, 165, 400]);
    }
    Trial::new([Data::Gaussian, Data::Duplicated], [300, 128], [16, 33], 40).holds(&[32]);
    Trial::new([Data::NearTies, Data::NearTies], [129, 257], [12, 12], 20).holds(&[40]);
}

#[test]
fn sums_that_round_to_the_same_number_go_by_id() {
    // Far below what float32 tells apart beside the other half: rows tie although their scores differ, best last.
    let rows: Vec<f32> = (0..100).map(|i| i as f32 * 1e-9).collect();
    let columns: Vec<f32> = (0..100).map(|j| if j % 7 == 3 { 2.0 } else { 1.0 }).collect();
    let keys = [[rows.clone(), rows].concat(), [columns.clone(), columns].concat()];
    Trial { keys, n: [100, 100], dim: [1, 1], queries: vec![1.0; 40] }.holds(&[1, 5, 20, 40, 1500]);
}

#[test]
fn a_half_key_far_above_the_others_makes_all_the_best_pairs() {
    let mut trial = Trial::new([Data::Gaussian; 2], [150, 140], [24, 24], 9);
    for half in 0..2 {
        let first = &mut trial.keys[half][7 * 24..8 * 24];
        first.iter_mut().for_each(|x| *x *= 30.0);
    }
    trial.holds(&[20, 64]);
}

#[test]
fn queries_and_keys_of_any_size_are_met() {
    let plain = Trial::new([Data::Gaussian; 2], [40, 50], [8, 8], 9);
    for size in [0.0, 1e-42, 1e-30, 1e15, 1e17] {
        let mut trial = Trial::new([Data::Gaussian; 2], [40, 50], [8, 8], 9);
        trial.queries[64..].iter_mut().for_each(|x| *x *= size);
        trial.holds(&[9]);
        trial.queries.copy_from_slice(&plain.queries);
        trial.keys[0][16..].iter_mut().for_each(|x| *x *= size);
        trial.holds(&[9]);
    }
}

#[test]
fn what_is_not_finite_is_never_found() {
    let mut trial = Trial::new([Data::Gaussian; 2], [40, 50], [4, 4], 12);
    let clean = trial.sub_keys().lookup(every_table().last().unwrap(), &trial.queries, 9, &Work::ALONE).unwrap();
    trial.queries[3] = f32::NAN;
    trial.keys[0][8] = f32::INFINITY;
    trial.keys[1][17] = f32::NAN;
    for kernels in every_table() {
        let got = trial.sub_keys().lookup(kernels, &trial.queries, 9, &Work::ALONE).unwrap();
        assert!(got.ids[..9].iter().all(|&id| id == -1) && got.scores[..9].iter().all(|&s| s == f32::NEG_INFINITY));
        for (query, ids) in got.ids.chunks(9).enumerate().skip(1) {
            let odd = |id: i64| query % HEADS == 0 && (id / 50 == 2 || id % 50 == 4);
            assert!(ids.iter().all(|&id| id >= 0 && !odd(id)), "{:?}", kernels.isa);
            let kept = clean.ids[query * 9..][..9].iter().filter(|&&id| !odd(id));
            assert!(kept.zip(ids).all(|(a, b)| a == b), "the others are as before");
        }
    }
}

#[test]
fn wrong_shapes_and_numbers_are_refused() {
    let trial = Trial::new([Data::Gaussian; 2], [6, 5], [4, 3], 2);
    let kernels = every_table().last().unwrap();
    let kind = |keys: SubKeys, queries: &[f32], k| keys.lookup(kernels, queries, k, &Work::ALONE).unwrap_err().kind;
    let keys = trial.sub_keys();
    assert_eq!(kind(keys, &trial.queries[1..], 3), Kind::Shape);
    assert_eq!(kind(SubKeys { n: [6, 6], ..keys }, &trial.queries, 3), Kind::Shape);
    assert_eq!(kind(SubKeys { dim: [0, 3], ..keys }, &trial.queries, 3), Kind::Shape);
    assert_eq!(kind(keys, &trial.queries, 0), Kind::Argument);
    assert_eq!(kind(keys, &trial.queries, 1 << 40), Kind::Argument);
    let gradient = |ids: &[i64], grad: &[f32]| keys.gradient(kernels, &trial.queries, ids, grad, &Work::ALONE);
    assert_eq!(gradient(&[0; 4], &[0.0; 3]).unwrap_err().kind, Kind::Shape);
    assert_eq!(gradient(&[30, 0, 0, 0], &[0.0; 4]).unwrap_err().kind, Kind::Id);
    let none = keys.lookup(kernels, &[], 3, &Work::ALONE).unwrap();
    assert!(none.ids.is_empty() && none.scores.is_empty());
}

#[test]
fn gradients_are_those_of_plain_loops() {
    let trial = Trial::new([Data::Gaussian; 2], [20, 30], [5, 6], 9);
    let (n, k, width) = (18, 7, 11);
    let mut random = Random::new(3);
    for kernels in every_table() {
        let found = trial.sub_keys().lookup(kernels, &trial.queries, k, &Work::ALONE).unwrap();
        let mut ids = found.ids;
        ids[4] = -1;
        let grad: Vec<f32> = (0..n * k).map(|_| random.below(2000) as f32 / 1000.0 - 1.0).collect();
        let mut of_queries = vec![0.0f64; n * width];
        let mut of_keys = [vec![0.0f64; HEADS * 20 * 5], vec![0.0f64; HEADS * 30 * 6]];
        for query in 0..n {
            for hit in 0..k {
                let (id, grad) = (ids[query * k + hit], f64::from(grad[query * k + hit]));
                if id < 0 {
                    continue;
                }
                for (half, of_keys) in of_keys.iter_mut().enumerate() {
                    let row = if half == 0 { id as usize / 30 } else { id as usize % 30 };
                    let row = (query % HEADS * trial.n[half] + row) * trial.dim[half];
                    for j in 0..trial.dim[half] {
                        let at = query * width + half * 5 + j;
                        of_queries[at] += grad * f64::from(trial.keys[half][row + j]);
                        of_keys[row + j] += grad * f64::from(trial.queries[at]);
                    }
                }
            }
        }
        let mut before = None;
        for threads in [1, 2, 3] {
            let work = Work { threads, ..Work::ALONE };
            let got = trial.sub_keys().gradient(kernels, &trial.queries, &ids, &grad, &work).unwrap();
            let near = |got: &[f32], want: &[f64]| got.iter().zip(want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4);
            assert!(
                near(&got.queries, &of_queries) && near(&got.keys[0], &of_keys[0]) && near(&got.keys[1], &of_keys[1])
            );
            assert_eq!(&got, before.get_or_insert_with(|| got.clone()), "{threads} threads");
        }
    }
}

#[test]
fn what_is_read_are_the_values_of_the_best_slots_weighed() {
    let (trial, k, dim) = (Trial::new([Data::Gaussian; 2], [20, 30], [5, 6], 9), 7, 33);
    let mut random = Random::new(4);
    let values = Data::Gaussian.array(&mut random, [1, 1, 50, dim]).into_raw_vec_and_offset().0;
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = Table { bytes: &bytes, format: Format::F32, dim };
    for kernels in every_table() {
        for weighing in [Weighing::Softmax(0.5), Weighing::Scores(0.5)] {
            let keys = trial.sub_keys();
            let found = keys.lookup(kernels, &trial.queries, k, &Work::ALONE).unwrap();
            let mut want = vec![0.0f64; 9 * dim];
            for (query, (scores, ids)) in found.scores.chunks(k).zip(found.ids.chunks(k)).enumerate() {
                let weight = |&score: &f32| match weighing {
                    Weighing::Scores(scale) => f64::from(scale * score),
                    Weighing::Softmax(scale) => f64::exp((scale * (score - scores[0])).into()),
                };
                let total = if weighing == Weighing::Scores(0.5) { 1.0 } else { scores.iter().map(weight).sum() };
                for (score, id) in scores.iter().zip(ids) {
                    for c in 0..dim {
                        let value = values[*id as usize % 50 * dim + c];
                        want[query / HEADS * dim + c] += weight(score) / total * f64::from(value);
                    }
                }
            }
            for threads in [1, 3] {
                let work = Work { threads, ..Work::ALONE };
                let got = keys.read(kernels, &trial.queries, k, weighing, table, &work).unwrap();
                assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4), "{weighing:?}");
            }
        }
    }
}

#[test]
fn values_are_summed_and_their_gradients_kept_row_by_row() {
    let (n, dim, tokens, m) = (50, 33, 70, 8);
    let mut random = Random::new(11);
    let values = Data::Gaussian.array(&mut random, [1, 1, n, dim]).into_raw_vec_and_offset().0;
    let grad = Data::Gaussian.array(&mut random, [1, 1, tokens, dim]).into_raw_vec_and_offset().0;
    let weights = Data::Gaussian.array(&mut random, [1, 1, tokens, m]).into_raw_vec_and_offset().0;
    // Rows 40 to 49 are never read, and here and there nothing is.
    let ids: Vec<i64> = (0..tokens * m).map(|_| random.below(41) as i64 - 1).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bag =
        Bag { values: Table { bytes: &bytes, format: Format::F32, dim }, ids: &ids, weights: &weights, n: tokens };
    let (mut sums, mut of_weights) = (vec![0.0f64; tokens * dim], vec![0.0f64; tokens * m]);
    let mut of_values = vec![vec![0.0f64; dim]; n];
    for at in (0..tokens * m).filter(|&at| ids[at] >= 0) {
        for c in 0..dim {
            let (value, g) = (f64::from(values[ids[at] as usize * dim + c]), f64::from(grad[at / m * dim + c]));
            sums[at / m * dim + c] += f64::from(weights[at]) * value;
            of_weights[at] += g * value;
            of_values[ids[at] as usize][c] += f64::from(weights[at]) * g;
        }
    }
    let near = |got: &[f32], want: &[f64]| got.iter().zip(want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4);
    for kernels in every_table() {
        let mut before = None;
        for threads in [1, 2, 3] {
            let work = Work { threads, ..Work::ALONE };
            let reads = bag.reads().unwrap();
            let mut values = vec![f32::NAN; reads.rows.len() * dim];
            let weights = bag.gradient(kernels, &reads, &grad, &mut values, &work).unwrap();
            let got = (bag.sums(kernels, &work).unwrap(), weights, values);
            assert!(near(&got.0, &sums) && near(&got.1, &of_weights));
            let read: Vec<i64> = (0..40).filter(|id| ids.contains(id)).collect();
            assert_eq!(reads.rows, read, "what was read, ascending");
            for (row, got) in read.iter().zip(got.2.chunks(dim)) {
                assert!(near(got, &of_values[*row as usize]));
            }
            assert_eq!(&got, before.get_or_insert_with(|| got.clone()), "{threads} threads");
        }
    }
    let wrong = Bag { ids: &[50; 8], weights: &[1.0; 8], n: 1, ..bag };
    let kernels = every_table().last().unwrap();
    assert_eq!(wrong.sums(kernels, &Work::ALONE).unwrap_err().kind, Kind::Id);
    let reads = bag.reads().unwrap();
    let mut room = vec![0.0; reads.rows.len() * dim];
    let mut kind = |bag: Bag, grad: &[f32], n: usize| {
        bag.gradient(kernels, &reads, grad, &mut room[..n], &Work::ALONE).unwrap_err().kind
    };
    let n = reads.rows.len() * dim;
    assert_eq!(kind(bag, &grad[1..], n), Kind::Shape);
    assert_eq!(kind(bag, &grad, n - dim), Kind::Shape);
    let other: Vec<i64> = ids.iter().map(|&id| (id + 1).min(40)).collect();
    assert_eq!(kind(Bag { ids: &other, ..bag }, &grad, n), Kind::Shape, "reads of other ids");
    assert_eq!(wrong.reads().unwrap_err().kind, Kind::Id);
}
