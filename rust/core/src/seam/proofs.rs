//! What the seam has to be able to do.

use std::sync::Arc;

use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::QUAD;
use mnemex_kernels::{Kernels, bound};
use ndarray::Array4;
use proptest::prelude::*;

use super::machine::{HEADS, KEY_DIM, Machine, Setting, Step, setting, step};
use super::pages::Pages;
use crate::arena::Arena;
use crate::bank::Bank;
use crate::block::{Block, Encoded, Schema};
use crate::codec::Codec;
use crate::config::{Config, ScanCodec};
use crate::extent::Demand;
use crate::input::Input;
use crate::predicate::{Op, Predicate, Value};
use crate::query::Query;
use crate::work::Work;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bank_of_any_parts_agrees_with_plain_vectors(
        setting in setting(1),
        steps in prop::collection::vec(step(1), 1..40),
        seed in any::<u64>(),
    ) {
        let mut machine = Machine::new(setting);
        for (i, step) in steps.iter().enumerate() {
            machine.step(step);
            machine.check(seed.rotate_left(i as u32));
            if i % 5 == 4 || i + 1 == steps.len() {
                machine.check_others(seed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lanes_of_many_pages_of_blocks_hold_the_ids_that_they_should(
        setting in setting(150),
        steps in prop::collection::vec(step(150), 1..30),
    ) {
        // Thousands of entries would be compared with thousands: what merges do is seen in short lanes.
        let mut machine = Machine::new(Setting { consolidate: false, ..setting });
        for step in &steps {
            machine.step(step);
            machine.check_ids();
        }
    }
}

fn filled(n: usize) -> Machine {
    let mut machine = Machine::new(Setting::PLAIN);
    (0..n as u64 / 100).for_each(|seed| machine.write(100, seed));
    machine
}

/// Merged keys are rounded to the codec: what the first pass knows of a key must be about the rounded one.
#[test]
fn a_rewritten_key_is_bounded_as_it_is_stored() {
    for (metric, codec) in [Metric::Dot, Metric::Cos, Metric::L2].into_iter().zip([Codec::F16, Codec::Bf16, Codec::F16])
    {
        let scan_codec = (metric != Metric::L2).then_some(ScanCodec::Int8);
        let plain = Machine::new(Setting::PLAIN).bank.config().clone();
        let config = Config { metric, key_codec: Some(codec), scan_codec, ..plain };
        let schema = Schema::of(&config, codec, Codec::F32);
        let kernels = Kernels::best().unwrap();
        let mut block =
            Block::for_lane(&schema, None, Demand { now: 1, in_all: 1, in_bank: 1, arena: &Arena::default() }).unwrap();
        block.extend(&schema, &Encoded::zeroed(&schema, 1).unwrap(), 0, 1);
        // Rounds up in both halves, so the stored key is longer than the merged one.
        let key = [1.0 + 0.75 * 2f32.powi(if codec == Codec::F16 { -10 } else { -7 }); KEY_DIM];
        block.rewrite(&schema, kernels, 0, &key, &[0.0; 3]);
        let mut stored = [0.0; KEY_DIM];
        block.key(&schema, 0).decode(&mut stored);
        let norm = (kernels.square_norm)(&stored).sqrt();
        assert!(norm > (kernels.square_norm)(&key).sqrt());
        assert_eq!(block.reach(), bound::reach(metric, norm));
        let scale: &[f32] = if metric == Metric::Cos { &[(1.0 / norm) as f32] } else { &[] };
        assert_eq!(&block.scale()[..scale.len()], scale);
        let rounds = kernels.short.is_some() && codec == Codec::F16 && metric != Metric::L2;
        let lost = if rounds { (kernels.lost)(&stored) * scale.first().unwrap_or(&1.0) } else { 0.0 };
        assert_eq!(block.lost(), lost);
        let Some((codes, lost)) = block.coded(&schema) else { continue };
        let mut want = [0; KEY_DIM];
        let unit = if metric == Metric::Cos { 1.0 / norm } else { 1.0 };
        let coded = (kernels.code)(&stored, unit, &mut want);
        assert_eq!((codes.scale[0], lost), (coded.scale, coded.lost));
        let at = |j: usize| codes.bytes[(j / QUAD * codes.rows) * QUAD + j % QUAD];
        assert_eq!((0..KEY_DIM).map(at).collect::<Vec<_>>(), want);
    }
}

#[test]
fn eight_beams_cost_eight_tails() {
    let machine = filled(10_000);
    let one = machine.bank.nbytes();
    machine.bank.fork(8).unwrap();
    let grown = machine.bank.nbytes() as f64 / one as f64;
    assert!(grown < 1.01, "8 beams take {grown:.3} times the memory of one before they part");
    let keys = Array4::from_elem((16, HEADS, 1, KEY_DIM), 1.0f32);
    let values = Array4::from_elem((16, HEADS, 1, super::machine::VALUE_DIM), 1.0f32);
    let tokens = crate::stage::Tokens::of(Input::F32(keys.view()), Some(Input::F32(values.view())));
    machine.bank.stage(&tokens, &Work::ALONE).unwrap();
    machine.bank.commit(&Work::ALONE).unwrap();
    let grown = machine.bank.nbytes() as f64 / one as f64;
    assert!(grown < 1.2, "8 beams that parted take {grown:.2} times the memory of one");
}

#[test]
fn a_block_is_copied_only_where_a_snapshot_holds_it() {
    let mut machine = filled(1_000);
    let last_block = |bank: &Bank| {
        let version = bank.snapshot().version;
        Arc::as_ptr(&version.rows[0].lanes[0].lists()[0].refs().last().unwrap().block)
    };
    let before = last_block(&machine.bank);
    machine.write(1, 5);
    assert_eq!(before, last_block(&machine.bank));
    let held = machine.bank.snapshot();
    machine.write(1, 6);
    assert_ne!(before, last_block(&machine.bank));
    assert_eq!(held.lengths()[0][0] + 1, machine.bank.snapshot().lengths()[0][0]);
}

#[test]
fn an_index_that_looks_at_one_list_finds_only_what_is_there() {
    let mut machine = Machine::with_index(Setting::PLAIN, Box::new(Pages { size: 10, newest_only: true }), 1);
    machine.write(25, 1);
    let queries = Array4::from_elem((1, HEADS, 1, KEY_DIM), 1.0f32);
    let query = Query::of(Input::F32(queries.view()));
    let hits = machine.bank.snapshot().search(&query, 25, &Work::ALONE).unwrap();
    assert!(hits.ids.iter().all(|&id| id == -1 || id >= 20));
    assert_eq!(hits.ids.iter().filter(|&&id| id >= 20).count(), HEADS * 5);
    // A condition is asked of the right block of the right list.
    let late = [Predicate { column: "id", op: Op::AtLeast, value: Value::I64(&[23]) }];
    let hits = machine.bank.snapshot().search(&Query { predicates: &late, ..query }, 25, &Work::ALONE).unwrap();
    let mut shown: Vec<i64> = hits.ids.into_iter().filter(|&id| id >= 0).collect();
    shown.sort_unstable();
    assert_eq!(shown, [[23; HEADS], [24; HEADS]].concat());
}

#[test]
fn a_bank_that_is_held_by_nobody_gives_back_what_it_forgets() {
    let mut machine = filled(2_000);
    let full = machine.bank.nbytes();
    (0..2).for_each(|row| machine.step(&Step::Truncate { row, end: 50 }));
    assert!(machine.bank.nbytes() * 10 < full);
}
