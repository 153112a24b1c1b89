//! Every read of a version beside the same read of plain vectors.

use crate::bias::Bias;
use mnemex_kernels::softmax::Logit;
use ndarray::Array4;

use super::plain::{Entry, Plain, Sight};
use crate::attend::Attention;
use crate::bank::Snapshot;
use crate::gather::{Vectors, Wanted};
use crate::input::Input;
use crate::query::Query;
use crate::reader::Reader;
use crate::search::Hits;
use crate::work::Work;

/// Queries per head.
const T: usize = 2;

/// Whole numbers: exact in every codec, and many of them equal.
pub(super) fn numbers(seed: u64, shape: [usize; 4]) -> Array4<f32> {
    let mut state = seed;
    Array4::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 7) as f32 - 3.0
    })
}

/// The snapshot and the model hold the same and answer the same.
pub(super) fn agree(snapshot: &Snapshot, plain: &Plain, seed: u64) {
    let lengths: Vec<Vec<usize>> = plain.rows.iter().map(|row| row.heads.iter().map(Vec::len).collect()).collect();
    assert_eq!(snapshot.lengths(), lengths);
    for (row, lanes) in lengths.iter().enumerate() {
        for head in 0..lanes.len() {
            holds_the_same(snapshot, plain, row, head);
        }
    }
    let config = snapshot.config();
    let n = plain.rows.len();
    let queries = numbers(seed, [n, config.heads, T, config.key_dim]);
    let before: Vec<i64> = (0..n * T).map(|at| (seed >> (at % 8)) as i64 % 64).collect();
    for before in [None, Some(&before[..])] {
        let query = Query {
            queries: Input::F32(queries.view()),
            rows: None,
            before,
            allowed: None,
            predicates: &[],
            nonfinite: None,
        };
        for k in [1, 3, 50] {
            let hits = snapshot.search(&query, k, &Work::ALONE).unwrap();
            let sight = |row: usize, t: usize| before.map_or(i64::MAX, |before| before[row * T + t]);
            finds_the_same(&hits, plain, &queries, sight);
            let reader = Reader { before: 1, after: 2, ..Reader::from(k) };
            let near = snapshot.search(&query, reader, &Work::ALONE).unwrap();
            finds_the_same_around(&hits, &near, plain, &queries, sight);
            for k in [Some(k), None] {
                attends_the_same(snapshot, plain, &query, (k, &queries), sight);
            }
        }
    }
}

fn floats(vectors: Vectors) -> Vec<f32> {
    match vectors {
        Vectors::F32(x) => x,
        Vectors::F16(bits) => {
            let mut x = vec![0.0; bits.len()];
            mnemex_kernels::convert::widen_f16(&bits, &mut x);
            x
        }
    }
}

fn holds_the_same(snapshot: &Snapshot, plain: &Plain, row: usize, head: usize) {
    let entries = &plain.rows[row].heads[head];
    let ids: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
    let wanted = Wanted { rows: &vec![row; ids.len()], heads: &vec![head; ids.len()], ids: &ids };
    let (keys, values) = snapshot.gather(&wanted, &Work::ALONE).unwrap();
    let all = |vector: fn(&Entry) -> &Vec<f32>| entries.iter().flat_map(vector).copied().collect::<Vec<f32>>();
    assert_eq!(floats(keys), all(|entry| &entry.key));
    assert_eq!(floats(values.unwrap()), all(|entry| &entry.value));
    for id in ids {
        let stored = &snapshot.version().rows[row];
        assert_eq!(stored.label(id), plain.rows[row].label(id));
        assert_eq!(stored.position(id), plain.rows[row].position(id));
        let used = snapshot.usage(row, head, id).unwrap();
        let told = plain.rows[row].used.get(&(head, id)).copied().unwrap_or_default();
        assert_eq!((used.hits, used.mass), told);
    }
}

fn query_of(queries: &Array4<f32>, [row, head, t]: [usize; 3]) -> Vec<f32> {
    queries.slice(ndarray::s![row, head, t, ..]).to_vec()
}

fn finds_the_same(hits: &Hits, plain: &Plain, queries: &Array4<f32>, before: impl Fn(usize, usize) -> i64) {
    let [n, heads, _, k] = hits.shape;
    for at in 0..n * heads * T {
        let (row, head, t) = (at / (T * heads), at / T % heads, at % T);
        let q = query_of(queries, [row, head, t]);
        let best = plain.search(Sight { row, head, before: before(row, t) }, &q, k);
        let mut want: Vec<_> =
            best.iter().map(|(score, id)| (score.to_bits(), *id, plain.rows[row].label(*id))).collect();
        want.resize(k, (f32::NEG_INFINITY.to_bits(), -1, -1));
        let label = |i: usize| hits.labels.as_ref().map_or(-1, |labels| labels[i]);
        let got: Vec<_> = (at * k..(at + 1) * k).map(|i| (hits.scores[i].to_bits(), hits.ids[i], label(i))).collect();
        assert_eq!(got, want);
    }
}

/// Each hit, and with it the id before and the two ids after, where a query sees them.
fn finds_the_same_around(
    hits: &Hits,
    near: &Hits,
    plain: &Plain,
    queries: &Array4<f32>,
    before: impl Fn(usize, usize) -> i64,
) {
    let [_, heads, _, k] = hits.shape;
    for (at, &hit) in hits.ids.iter().enumerate() {
        let (row, head, t) = (at / k / T / heads, at / k / T % heads, at / k % T);
        let q = query_of(queries, [row, head, t]);
        let seen = plain.search(Sight { row, head, before: before(row, t) }, &q, usize::MAX);
        let want = [hit, hit - 1, hit + 1, hit + 2].map(|id| {
            let there = seen.iter().find(|(_, seen)| hit >= 0 && *seen == id);
            there.map_or((f32::NEG_INFINITY.to_bits(), -1), |(score, id)| (score.to_bits(), *id))
        });
        let got = [0, 1, 2, 3].map(|i| (near.scores[at * 4 + i].to_bits(), near.ids[at * 4 + i]));
        assert_eq!(got, want);
    }
}

/// Within 1e-5 + 2.4e-7 times the largest logit, relative to the largest output.
fn attends_the_same(
    snapshot: &Snapshot,
    plain: &Plain,
    query: &Query,
    (k, queries): (Option<usize>, &Array4<f32>),
    before: impl Fn(usize, usize) -> i64,
) {
    let (heads, dim) = (snapshot.config().heads, snapshot.config().value_dim());
    let logit = Logit { scale: 0.5, softcap: None };
    let part = snapshot
        .attend(query, &Attention { k: k.map(Into::into), logit, bias: Bias::None, with_hits: false }, &Work::ALONE)
        .unwrap();
    for at in 0..part.lse.len() {
        let (row, head, t) = (at / (T * heads), at / T % heads, at % T);
        let q = query_of(queries, [row, head, t]);
        let (out, lse, largest) =
            plain.attend(Sight { row, head, before: before(row, t) }, &q, k.unwrap_or(usize::MAX), dim);
        let tolerance = 1e-5 + 2.4e-7 * largest;
        let lse_off = (f64::from(part.lse[at]) - lse).abs();
        assert!(part.lse[at] == lse as f32 || lse_off <= tolerance * lse.abs().max(1.0), "{lse_off} off");
        let size = out.iter().fold(1.0f64, |max, x| max.max(x.abs()));
        let got = &part.out[at * dim..][..dim];
        let close = got.iter().zip(&out).all(|(a, b)| (f64::from(*a) - b).abs() <= tolerance * size);
        assert!(close, "{got:?} for {out:?}");
    }
}
