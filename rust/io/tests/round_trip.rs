//! What was saved is what is opened.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should say where")]

mod fixture;

use fixture::{Scratch, Side, assert_same, config, configs, everything, numbers, open, save, through_a_file, write};
use mnemex_core::config::{Evict, NonFinite};
use mnemex_core::input::Input;
use mnemex_core::stage::Tokens;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config};
use mnemex_io::{Contents, Kind};

#[test]
fn every_kind_of_bank_comes_back_with_the_same_bits() {
    for config in configs() {
        let bank = everything(config);
        assert_same(&bank.snapshot(), &through_a_file(&bank).snapshot());
    }
}

#[test]
fn a_save_of_what_was_opened_has_the_same_bytes() {
    let scratch = Scratch::new();
    save(&scratch.at("a"), &[everything(config()).snapshot()]).unwrap();
    save(&scratch.at("b"), &[open(&scratch.at("a")).unwrap().banks[0].snapshot()]).unwrap();
    assert_eq!(fixture::names(&scratch.at("a")), ["bank-0.arrow", "manifest.json"]);
    for name in fixture::names(&scratch.at("a")) {
        let read = |save: &str| std::fs::read(scratch.at(save).join(&name)).unwrap();
        assert!(read("a") == read("b"), "{name}");
    }
}

#[test]
fn empty_banks_come_back_empty_and_open_to_any_type() {
    for rows in [0, 2] {
        let bank = Bank::new(config(), rows).unwrap();
        let opened = through_a_file(&bank);
        assert_same(&bank.snapshot(), &opened.snapshot());
        assert_eq!(opened.snapshot().version().schema, None);
    }
    let half = numbers(3, [1, 2, 4, 5]).mapv(|_| 0x3C00u16);
    let values = numbers(4, [1, 2, 4, 3]).mapv(|_| 0x3C00u16);
    let opened = through_a_file(&Bank::new(config(), 1).unwrap());
    let tokens = Tokens::of(Input::F16(half.view()), Some(Input::F16(values.view())));
    opened.stage(&tokens, &Work::ALONE).unwrap();
    opened.commit(&Work::ALONE).unwrap();
    assert_eq!(opened.snapshot().version().schema.unwrap().key.codec, Codec::F16);
    assert_same(&opened.snapshot(), &through_a_file(&opened).snapshot());
}

#[test]
fn a_bank_whose_entries_are_all_gone_keeps_its_counter_and_its_type() {
    let bank = everything(config());
    bank.truncate(0, None).unwrap();
    let opened = through_a_file(&bank);
    assert_same(&bank.snapshot(), &opened.snapshot());
    write(&opened, 9, &[0], 1, &Side::default());
    assert_eq!(opened.snapshot().version().rows[0].lanes()[0].live_ids(), [75]);
}

#[test]
fn writing_goes_on_as_in_the_bank_that_was_saved() {
    for evict in [Evict::Fifo, Evict::Error] {
        let bank = Bank::new(Config { evict, capacity: Some(45.into()), ..config() }, 3).unwrap();
        write(&bank, 10, &[0, 1], 30, &Side::default());
        bank.delete(&[0, 3, 4, 17, 28, 29], None).unwrap();
        let opened = through_a_file(&bank);
        for bank in [&bank, &opened] {
            write(bank, 11, &[0, 2], 20, &Side { labels: Some(&[7; 40]), ..Side::default() });
            bank.delete(&[31, 49], None).unwrap();
        }
        assert_same(&bank.snapshot(), &opened.snapshot());
        assert_same(&bank.snapshot(), &through_a_file(&opened).snapshot());
    }
}

#[test]
fn heads_may_differ_in_what_is_alive() {
    // Only policies end single heads; what they leave is what a lane built by hand has.
    let (schema, ids): (_, [&[i64]; 2]) =
        (everything(config()).snapshot().version().schema.unwrap(), [&[1, 2, 9, 700], &[2, 4, 700, 5000]]);
    let mut row = mnemex_core::restore::RowBuilder::new(&schema, 2, 1 << 40).unwrap();
    for (head, ids) in ids.into_iter().enumerate() {
        let (keys, values) = ([0x3F; 4 * 5 * 4], [0x40; 4 * 3 * 4]);
        row.append(head, 4, &mnemex_core::restore::Entries { ids, keys: &keys, values: &values }).unwrap();
    }
    row.labels([(1, 5), (2, 6), (4, 7), (700, 8)]);
    let bank = Bank::from_rows(config(), vec![row.finish()], Some(schema), 0).unwrap();
    assert_same(&bank.snapshot(), &through_a_file(&bank).snapshot());
}

#[test]
fn long_lanes_are_written_in_several_batches() {
    let config = Config { heads: 1, key_dim: 1, ..config() };
    let bank = Bank::new(config, 1).unwrap();
    write(&bank, 1, &[0], 70_000, &Side::default());
    bank.delete(&(1000..30_000).step_by(2).collect::<Vec<_>>(), None).unwrap();
    assert_same(&bank.snapshot(), &through_a_file(&bank).snapshot());
}

#[test]
fn numbers_that_are_not_finite_come_back_where_they_were_kept() {
    let bank = Bank::new(Config { nonfinite: NonFinite::Keep, ..config() }, 1).unwrap();
    let mut keys = numbers(1, [1, 2, 4, 5]);
    keys[[0, 1, 2, 3]] = f32::from_bits(0x7FC0_1234);
    keys[[0, 0, 1, 0]] = f32::INFINITY;
    let values = numbers(2, [1, 2, 4, 3]);
    let tokens = Tokens::of(Input::F32(keys.view()), Some(Input::F32(values.view())));
    bank.stage(&tokens, &Work::ALONE).unwrap();
    bank.commit(&Work::ALONE).unwrap();
    assert_same(&bank.snapshot(), &through_a_file(&bank).snapshot());
}

#[test]
fn a_memory_keeps_the_order_of_its_banks_and_may_be_empty() {
    let scratch = Scratch::new();
    let banks: Vec<_> = configs().into_iter().take(12).map(everything).collect();
    let snapshots: Vec<_> = banks.iter().map(Bank::snapshot).collect();
    for (name, banks) in [("all", snapshots.as_slice()), ("none", &[])] {
        let contents = Contents { kind: Kind::Memory, banks, metadata: "null" };
        mnemex_io::save(&scratch.at(name), &contents, false, &Work::ALONE).unwrap();
        let opened = open(&scratch.at(name)).unwrap();
        assert_eq!((opened.kind, opened.metadata.as_str(), opened.banks.len()), (Kind::Memory, "null", banks.len()));
        banks.iter().zip(&opened.banks).for_each(|(bank, opened)| assert_same(bank, &opened.snapshot()));
    }
}
