//! The number of threads changes no bit of an answer.

use std::process::Command;

use mnemex_core::Bank;
use mnemex_core::config::Values;
use mnemex_core::work::Work;
use mnemex_oracle as oracle;

use crate::data::{Data, Random};
use crate::lanes::{METRICS, ask, attend, bits, config, entries, every_table, search, write};

/// Entries and queries enough for the threads to be woken, and for one lane to be divided among them.
const N: usize = 9000;
const QUERIES: usize = 36;
const DIM: usize = 32;

#[test]
fn answers_have_the_same_bits_on_any_number_of_threads() {
    for ((metric, slow), data) in METRICS.into_iter().zip([Data::Duplicated, Data::Clustered, Data::Gaussian]) {
        let mut random = Random::new(7);
        let keys = data.array(&mut random, [1, 1, N, DIM]);
        let values = Data::Gaussian.array(&mut random, [1, 1, N, 9]);
        let queries = data.array(&mut random, [1, 1, QUERIES, DIM]);
        let mut truth: Option<(Vec<i64>, Vec<u32>)> = None;
        for kernels in every_table() {
            let bank = Bank::with_kernels(config(metric, DIM, Values::Dim(9)), 1, kernels).unwrap();
            write(&bank, &keys, Some(&values), [N]);
            let snapshot = bank.snapshot();
            let mut attended = None;
            for threads in [1, 2, 3] {
                let work = Work { threads, ..Work::ALONE };
                let hits = search(&snapshot, &ask(&queries), 40, &work);
                let found = (hits.ids, bits(&hits.scores));
                assert_eq!(&found, truth.get_or_insert_with(|| found.clone()), "{threads} threads, {:?}", kernels.isa);
                let few = queries.slice(ndarray::s![.., .., ..3, ..]).to_owned();
                let parts = [(Some(40), &queries), (None, &queries), (None, &few)]
                    .map(|(k, queries)| attend(&snapshot, &ask(queries), k, &work));
                let parts = parts.map(|part| (bits(&part.out), bits(&part.lse)));
                assert_eq!(
                    &parts,
                    attended.get_or_insert_with(|| parts.clone()),
                    "{threads} threads, {:?}",
                    kernels.isa
                );
            }
            if kernels.isa == mnemex_kernels::Isa::Portable {
                let keys: Vec<_> = entries(&snapshot, 0, 0).into_iter().map(|entry| (entry.id, entry.key)).collect();
                let q = queries.slice(ndarray::s![0, 0, 0, ..]).to_vec();
                let ids: Vec<i64> = oracle::search(slow, &keys, &q, 40).into_iter().map(|(_, id)| id).collect();
                assert_eq!(truth.as_ref().map(|(found, _)| &found[..40]), Some(&ids[..]));
            }
        }
    }
}

/// On a small machine three threads share two cores: a process of its own has a pool for all of them.
#[test]
fn the_same_holds_where_the_pool_has_room_for_all() {
    let test = "threads::answers_have_the_same_bits_on_any_number_of_threads";
    let run = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact"])
        .env("MNEMEX_NUM_THREADS", "3")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}
