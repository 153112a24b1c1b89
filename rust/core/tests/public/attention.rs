//! Attention beside the oracle, and its bits for any way in which entries came to lie in blocks.

use mnemex_core::attend::{Attention, Partial};
use mnemex_core::bias::Bias;
use mnemex_core::config::Values;
use mnemex_core::input::Input;
use mnemex_core::query::Query;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config};
use mnemex_kernels::softmax::Logit;
use mnemex_kernels::{Kernels, convert};
use mnemex_oracle as oracle;
use ndarray::Array4;

use crate::data::{Data, Random};
use crate::lanes::{METRICS, ask, attend, bits, config, entries, every_table, write};

#[test]
fn attention_is_softmax_over_what_search_takes() {
    for (seed, (metric, slow)) in (0..).zip(METRICS) {
        for (n, dim, value_dim) in [(1, 1, 1), (40, 7, 16), (300, 64, 5), (700, 33, 130)] {
            let mut random = Random::new(seed);
            let codec = Codec::ALL[random.below(3)];
            let keys = Data::Gaussian.array(&mut random, [1, 1, n, dim]);
            let values = Data::Gaussian.array(&mut random, [1, 1, n, value_dim]);
            let queries = Data::Gaussian.array(&mut random, [1, 1, 18, dim]);
            let config = config(metric, dim, Values::Dim(value_dim));
            let config = Config { key_codec: Some(codec), value_codec: Some(codec), ..config };
            for kernels in every_table() {
                let bank = Bank::with_kernels(config.clone(), 1, kernels).unwrap();
                write(&bank, &keys, Some(&values), [n]);
                bank.delete(&[3, 5, 64, 299], None).unwrap();
                for (k, softcap) in [(Some(1), None), (Some(9), Some(2.0)), (None, None), (None, Some(1.5))] {
                    let logit = Logit { scale: 0.7, softcap };
                    let asked = Attention { k: k.map(Into::into), logit, bias: Bias::None, with_hits: false };
                    let part = bank.snapshot().attend(&ask(&queries), &asked, &Work::ALONE).unwrap();
                    agrees(&bank, slow, &queries, &asked, &part);
                    let asked = Attention { with_hits: true, ..asked };
                    let with_hits = bank.snapshot().attend(&ask(&queries), &asked, &Work::ALONE).unwrap();
                    agrees(&bank, slow, &queries, &asked, &with_hits);
                    has_its_hits(&bank, &queries, &with_hits);
                }
            }
        }
    }
}

/// Within 1e-5 + 2.4e-7 times the largest logit, relative to the largest output.
fn agrees(bank: &Bank, metric: oracle::Metric, queries: &Array4<f32>, asked: &Attention, part: &Partial) {
    let entries = entries(&bank.snapshot(), 0, 0);
    let keys: Vec<_> = entries.iter().map(|entry| (entry.id, entry.key.clone())).collect();
    let dim = bank.config().value_dim();
    for t in 0..queries.dim().2 {
        let q = queries.slice(ndarray::s![0, 0, t, ..]).to_vec();
        let best = oracle::search(metric, &keys, &q, asked.k.map_or(usize::MAX, |reader| reader.k));
        let logit = |score: f32| {
            let z = f64::from(score) * f64::from(asked.logit.scale);
            asked.logit.softcap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh())
        };
        let logits: Vec<f64> = best.iter().map(|(score, _)| logit(*score)).collect();
        let value = |id: i64| entries.iter().find(|entry| entry.id == id).unwrap().value.clone();
        let values: Vec<_> = best.iter().map(|(_, id)| value(*id)).collect();
        let (out, lse) = oracle::attention(&logits, &values, dim);
        let tolerance = 1e-5 + 2.4e-7 * logits.iter().fold(0.0f64, |max, z| max.max(z.abs()));
        let largest = out.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        let got = &part.out[t * dim..][..dim];
        let off = got.iter().zip(&out).fold(0.0f64, |max, (a, b)| max.max((f64::from(*a) - b).abs()));
        assert!(off <= tolerance * largest.max(1.0), "out is {off:e} off for {:?}", asked.k);
        let off = (f64::from(part.lse[t]) - lse).abs();
        assert!(off <= tolerance * lse.abs().max(1.0), "lse is {off:e} off for {:?}", asked.k);
    }
}

fn has_its_hits(bank: &Bank, queries: &Array4<f32>, part: &Partial) {
    let (hits, mass) = part.hits.as_ref().unwrap();
    let k = hits.shape[3];
    assert_eq!(*hits, bank.snapshot().search(&ask(queries), k, &Work::ALONE).unwrap());
    for mass in mass.chunks(k) {
        assert!((mass.iter().sum::<f32>() - 1.0).abs() < 1e-5 && mass.iter().all(|m| (0.0..=1.0).contains(m)));
    }
}

/// One query, a few, and many meet entries in different ways, and queries in bfloat16 in yet another.
#[test]
fn attention_over_everything_is_softmax_for_any_number_of_queries() {
    let [n, dim, value_dim] = [500, 40, 24];
    for (metric, slow) in METRICS {
        for codec in Codec::ALL {
            let mut random = Random::new(codec as u64);
            let keys = Data::Gaussian.array(&mut random, [1, 1, n, dim]);
            let values = Data::Gaussian.array(&mut random, [1, 1, n, value_dim]);
            let config = Config {
                key_codec: Some(codec),
                value_codec: Some(codec),
                ..config(metric, dim, Values::Dim(value_dim))
            };
            for kernels in every_table() {
                let bank = Bank::with_kernels(config.clone(), 1, kernels).unwrap();
                write(&bank, &keys, Some(&values), [300, 3, 197]);
                bank.delete(&(0..200).filter(|id| id % 5 == 1).collect::<Vec<_>>(), None).unwrap();
                for t in [1, 3, 16, 130] {
                    let queries = Data::Gaussian.array(&mut random, [1, 1, t, dim]);
                    let short = in_bf16(&queries);
                    let logit = Logit { scale: 0.3, softcap: None };
                    let asked = Attention { k: None, logit, bias: Bias::None, with_hits: false };
                    let part = bank.snapshot().attend(&ask(&queries), &asked, &Work::ALONE).unwrap();
                    agrees(&bank, slow, &queries, &asked, &part);
                    let query = Query::of(Input::Bf16(short.view()));
                    let part = bank.snapshot().attend(&query, &asked, &Work::ALONE).unwrap();
                    let rounded = short.mapv(|x| f32::from_bits(u32::from(x) << 16));
                    agrees(&bank, slow, &rounded, &asked, &part);
                }
            }
        }
    }
}

/// Everything a lane of these tokens answers, written in commits of these sizes, `held` while a snapshot holds it.
fn answers(
    kernels: &'static Kernels,
    codec: Codec,
    arrays: [&Array4<f32>; 3],
    sizes: &[usize],
    held: bool,
) -> Vec<Vec<u32>> {
    let [keys, values, queries] = arrays;
    let config = config(METRICS[codec as usize].0, keys.dim().3, Values::Dim(values.dim().3));
    let config = Config { key_codec: Some(codec), value_codec: Some(codec), ..config };
    let bank = Bank::with_kernels(config, 1, kernels).unwrap();
    let mut first = 0;
    let mut snapshots = Vec::new();
    for &size in sizes {
        let cut = |x: &Array4<f32>| x.slice(ndarray::s![.., .., first..first + size, ..]).to_owned();
        write(&bank, &cut(keys), Some(&cut(values)), [size]);
        first += size;
        snapshots.extend(held.then(|| bank.snapshot()));
    }
    assert_eq!(first, keys.dim().2);
    let few = queries.slice(ndarray::s![.., .., ..2, ..]).to_owned();
    let short = in_bf16(queries);
    let everything = || {
        [ask(queries), ask(&few), Query::of(Input::Bf16(short.view()))]
            .map(|query| attend(&bank.snapshot(), &query, None, &Work::ALONE))
    };
    let whole = everything();
    bank.delete(&(0..first as i64).filter(|id| id % 7 == 3).collect::<Vec<_>>(), None).unwrap();
    let best = attend(&bank.snapshot(), &ask(queries), Some(11), &Work::ALONE);
    let parts = whole.into_iter().chain(everything()).chain([best]);
    parts.flat_map(|part| [bits(&part.out), bits(&part.lse)]).collect()
}

fn in_bf16(x: &Array4<f32>) -> Array4<u16> {
    let mut short = vec![0; x.len()];
    convert::narrow_bf16(x.as_slice().unwrap(), &mut short);
    Array4::from_shape_vec(x.raw_dim(), short).unwrap()
}

#[test]
fn attention_does_not_depend_on_how_entries_lie_in_blocks() {
    let n = 4700; // more than one job's stretch of ids
    let mut random = Random::new(1);
    let keys = Data::Clustered.array(&mut random, [1, 1, n, 9]);
    let values = Data::Gaussian.array(&mut random, [1, 1, n, 21]);
    let queries = Data::Gaussian.array(&mut random, [1, 1, 17, 9]);
    let mut chopped = Vec::new();
    while chopped.iter().sum::<usize>() < n {
        chopped.push((1 + random.below(150)).min(n - chopped.iter().sum::<usize>()));
    }
    for kernels in every_table() {
        for codec in Codec::ALL {
            let of = |sizes: &[usize], held| answers(kernels, codec, [&keys, &values, &queries], sizes, held);
            let at_once = of(&[n], false);
            assert!(at_once == of(&vec![1; n], false), "one by one, {codec:?}, {:?}", kernels.isa);
            assert!(at_once == of(&chopped, false), "in random chunks, {codec:?}, {:?}", kernels.isa);
            assert!(at_once == of(&chopped, true), "each version held, {codec:?}, {:?}", kernels.isa);
        }
    }
}

#[test]
fn nothing_to_attend_to_gives_zeros_and_minus_infinity() {
    let bank = Bank::new(config(METRICS[0].0, 3, Values::Dim(2)), 2).unwrap();
    let queries = Array4::from_elem((2, 1, 4, 3), 1.0f32);
    let nothing = |part: &Partial| {
        part.out.iter().all(|x| x.to_bits() == 0) && part.lse.iter().all(|lse| *lse == f32::NEG_INFINITY)
    };
    for k in [Some(3), None] {
        assert!(nothing(&attend(&bank.snapshot(), &ask(&queries), k, &Work::ALONE)));
    }
    let (keys, values) = (Array4::from_elem((2, 1, 5, 3), 1.0f32), Array4::from_elem((2, 1, 5, 2), 1.0f32));
    write(&bank, &keys, Some(&values), [5]);
    let unseen = [0i64; 8];
    for k in [Some(3), None] {
        let mut query = ask(&queries);
        query.before = Some(&unseen);
        assert!(nothing(&attend(&bank.snapshot(), &query, k, &Work::ALONE)));
    }
}

#[test]
fn ids_far_apart_cost_nothing_between_them() {
    use mnemex_core::block::Schema;
    use mnemex_core::restore::{Entries, RowBuilder};
    let config = config(METRICS[0].0, 1, Values::Key);
    let schema = Schema::of(&config, Codec::F32, Codec::F32);
    let mut row = RowBuilder::new(&schema, 1, 1 << 61).unwrap();
    let ids = [0, 1 << 20, (1 << 32) + 1, (1 << 60) + 5];
    let keys: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    row.append(0, 4, &Entries { ids: &ids, keys: &keys, values: &[] }).unwrap();
    let bank = Bank::from_rows(config, vec![row.finish()], Some(schema), 0).unwrap();
    let part = attend(&bank.snapshot(), &ask(&Array4::zeros((1, 1, 1, 1))), None, &Work::ALONE);
    assert!((part.out[0] - 2.5).abs() < 1e-6 && (part.lse[0] - 4f32.ln()).abs() < 1e-6);
}
