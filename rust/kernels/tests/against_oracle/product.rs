//! Candidates of product keys, and weighted sums of rows.

use half::{bf16, f16};
use mnemex_kernels::PANEL;
use mnemex_kernels::canonical::Chosen;
use mnemex_kernels::product::{Candidates, Table};
use mnemex_kernels::single::Format;
use mnemex_oracle as oracle;

use crate::block::{Random, awkward, tables};

#[test]
fn candidates_are_the_rows_that_reach_their_querys_threshold() {
    for kernels in tables() {
        for n in [1, 3, 4, 7, 64, 130] {
            let mut random = Random(n as u64);
            let mut panel: Vec<f32> = (0..n * PANEL).map(|_| random.unit()).collect();
            panel[n / 2 * PANEL] = f32::NAN;
            let mut thresholds: [f32; PANEL] = std::array::from_fn(|_| random.unit());
            (thresholds[3], thresholds[5]) = (f32::NEG_INFINITY, f32::INFINITY);
            thresholds[7] = panel[7];
            let mut got: [Candidates; PANEL] = Default::default();
            got[1].scores.push(9.0);
            got[1].rows.push(9);
            (kernels.collect)(&panel, &thresholds, &mut got);
            assert_eq!((got[1].scores.remove(0), got[1].rows.remove(0)), (9.0, 9), "what was there stays");
            for (lane, (got, least)) in got.iter().zip(thresholds).enumerate() {
                // NaN passes: it says nothing.
                let passes = |row: &u32| {
                    let score = panel[*row as usize * PANEL + lane];
                    score >= least || score.is_nan()
                };
                let want: Vec<u32> = (0..n as u32).filter(passes).collect();
                assert_eq!(got.rows, want, "{:?} lane {lane} of {n} rows", kernels.isa);
                let scores: Vec<u32> = want.iter().map(|&row| panel[row as usize * PANEL + lane].to_bits()).collect();
                assert_eq!(got.scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>(), scores);
            }
        }
    }
}

#[test]
fn groups_of_neighbours_have_their_largest_score() {
    for kernels in tables() {
        for (n, per) in [(1, 1), (16, 4), (17, 4), (67, 16), (5, 8)] {
            let mut random = Random((n * per) as u64);
            let panel: Vec<f32> = (0..n * PANEL).map(|_| random.unit()).collect();
            let groups = (n / per).max(1);
            let mut got = vec![f32::NAN; groups * PANEL];
            (kernels.group_maxima)(&panel, per, &mut got);
            for (at, got) in got.iter().enumerate() {
                let (group, lane) = (at / PANEL, at % PANEL);
                let end = if group + 1 == groups { n } else { (group + 1) * per };
                let of_group = (group * per..end).map(|row| panel[row * PANEL + lane]);
                assert_eq!(*got, of_group.fold(f32::NEG_INFINITY, f32::max), "{:?} {n} by {per}", kernels.isa);
            }
        }
    }
}

#[test]
fn ranks_count_the_scores_above() {
    for kernels in tables() {
        for n in [0, 1, 5, 16, 33, 200] {
            let mut random = Random(n as u64 + 5);
            let scores: Vec<f32> = (0..n).map(|_| (random.unit() * 9.0).round()).collect();
            let mut ranks = vec![7; 3];
            (kernels.ranks)(&scores, &mut ranks);
            // -0 and 0 are equal.
            let above = |score: &f32| scores.iter().filter(|other| *other > score).count() as u32;
            assert_eq!(ranks, scores.iter().map(above).collect::<Vec<_>>(), "{:?}", kernels.isa);
        }
    }
}

#[test]
fn sums_of_products_are_the_oracles_bits() {
    for kernels in tables() {
        awkward(|seed, kind, n, _, dim| {
            let mut random = Random(seed);
            let rows: Vec<Vec<f32>> = (0..n).map(|_| random.vector(kind, dim)).collect();
            let (table, q) = (rows.concat(), random.vector(kind, dim));
            let chosen: Vec<u32> = (0..n + 3).map(|_| random.bits() as u32 % n as u32).collect();
            let mut got = vec![f64::NAN; chosen.len()];
            (kernels.products)(Chosen { table: &table, rows: &chosen }, &q, &mut got);
            for (&row, got) in chosen.iter().zip(got) {
                let terms: Vec<f64> =
                    rows[row as usize].iter().zip(&q).map(|(&x, &q)| f64::from(x) * f64::from(q)).collect();
                assert_eq!(got.to_bits(), oracle::fixed_sum(&terms).to_bits(), "{:?} dim {dim}", kernels.isa);
            }
        });
    }
}

#[test]
fn weighted_rows_add_up_and_rows_meet_a_vector() {
    for kernels in tables() {
        for dim in [1, 7, 8, 15, 16, 17, 64, 127, 128, 129, 300] {
            let mut random = Random(dim as u64);
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let (n, m) = (37u32, random.bits() as usize % 40);
                let numbers: Vec<f32> = (0..n * dim as u32).map(|_| random.unit()).collect();
                let numbers: Vec<f32> = numbers.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
                let bytes: Vec<u8> = (numbers.iter())
                    .flat_map(|&x| match format {
                        Format::F32 => x.to_le_bytes().to_vec(),
                        Format::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                        Format::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                    })
                    .collect();
                let kept: Vec<f32> = match format {
                    Format::Bf16 => numbers.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
                    _ => numbers,
                };
                let rows: Vec<u32> = (0..m).map(|_| random.bits() as u32 % n).collect();
                let weights: Vec<f32> = (0..m).map(|_| random.unit()).collect();
                let mut out = vec![0.5; dim];
                let table = Table { bytes: &bytes, format, dim };
                (kernels.bag)(table, &rows, &weights, &mut out);
                let q: Vec<f32> = (0..dim).map(|_| random.unit()).collect();
                let mut products = vec![f32::NAN; m];
                (kernels.row_products)(table, &rows, &q, &mut products);
                for (&row, &got) in rows.iter().zip(&products) {
                    let row = &kept[row as usize * dim..][..dim];
                    let want: f64 = row.iter().zip(&q).map(|(&x, &q)| f64::from(x) * f64::from(q)).sum();
                    let room = 2f64.powi(-24) * dim as f64 * (dim as f64 + 8.0);
                    assert!((f64::from(got) - want).abs() <= room, "{:?} {dim}: {got} for {want}", kernels.isa);
                }
                for (column, &got) in out.iter().enumerate() {
                    let term = |(&row, &weight): (&u32, &f32)| {
                        f64::from(weight) * f64::from(kept[row as usize * dim + column])
                    };
                    let want = 0.5 + rows.iter().zip(&weights).map(term).sum::<f64>();
                    // m additions of numbers of at most 1, each rounded at half of 2^-24 of a sum of at most m + 1.
                    let room = 2f64.powi(-23) * (m as f64 + 1.0).powi(2);
                    assert!((f64::from(got) - want).abs() <= room, "{:?} {dim}: {got} for {want}", kernels.isa);
                }
            }
        }
    }
}
