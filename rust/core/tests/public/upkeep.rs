//! What writes leave behind: memory, counts and answers stay in proportion to what is live.

use mnemex_core::config::{Evict, Values};
use mnemex_core::labels::OnDuplicate;
use mnemex_core::stage::Tokens;
use mnemex_core::usage::Found;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Config, Kind, Metric};
use ndarray::Array4;

use crate::lanes::{config, tokens};

#[test]
fn an_upsert_workload_beside_one_old_entry_takes_no_more_memory_with_time() {
    let bank = Bank::new(config(Metric::Dot, 4, Values::None), 1).unwrap();
    let keys = Array4::from_elem((1, 1, 10, 4), 1.0f32);
    let mut sizes = Vec::new();
    for turn in 0..2000i64 {
        let (labels, first) = ([7i64; 10], turn * 10);
        let given = Tokens { labels: Some(&labels), positions: Some(&labels), ..tokens(&keys, None) };
        bank.write(&given, &Work::ALONE).unwrap();
        let ids: Vec<i64> = (first..first + 10).collect();
        bank.touch(&Found { rows: &[0], ids: &ids, k: 1, heads: 1, mass: None }).unwrap();
        bank.commit(&Work::ALONE).unwrap();
        // Entry 0 stays for ever.
        let before: Vec<i64> = (first - 10..first).filter(|&id| id > 0).collect();
        bank.delete(&before, None).unwrap();
        sizes.push(bank.nbytes());
    }
    let most = |sizes: &[usize]| sizes.iter().copied().max().unwrap();
    assert!(most(&sizes[1000..]) <= most(&sizes[..1000]) + 4096, "{} and {}", sizes[999], sizes[1999]);
}

#[test]
fn a_call_without_rows_has_its_tokens() {
    let bank = Bank::new(config(Metric::Dot, 2, Values::None), 1).unwrap();
    let keys = Array4::zeros((0, 1, 5, 2));
    let staged = bank.stage(&Tokens { rows: Some(&[]), ..tokens(&keys, None) }, &Work::ALONE).unwrap();
    assert_eq!((staged.rows.len(), staged.tokens), (0, 5));
}

#[test]
fn a_full_bank_counts_what_is_replaced_call_by_call() {
    let config = Config { capacity: Some(2.into()), evict: Evict::Error, ..config(Metric::Dot, 2, Values::None) };
    let bank = Bank::new(config, 1).unwrap();
    let keys = Array4::from_elem((1, 1, 1, 2), 1.0f32);
    let stage = |label: i64| {
        let on_duplicate = Some(OnDuplicate::Replace);
        bank.stage(&Tokens { labels: Some(&[label]), on_duplicate, ..tokens(&keys, None) }, &Work::ALONE)
    };
    stage(1).unwrap();
    stage(2).unwrap();
    bank.commit(&Work::ALONE).unwrap();
    for _ in 0..3 {
        stage(1).unwrap();
        assert_eq!(stage(3).unwrap_err().kind, Kind::Capacity);
    }
    bank.delete(&[1], None).unwrap();
    stage(3).unwrap();
    assert_eq!(stage(4).unwrap_err().kind, Kind::Capacity);
    bank.rollback_rows(None, Some(&[2])).unwrap();
    stage(4).unwrap();
    assert_eq!(stage(5).unwrap_err().kind, Kind::Capacity);
}
