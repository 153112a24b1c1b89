//! One table of function pointers per instruction set; chosen once, walked by tests and benches.

use std::sync::OnceLock;

use crate::canonical::{Chosen, Metric};
use crate::codes::{Coded, Codes, Query};
use crate::halves::Halves;
use crate::isa::{Isa, IsaError};
use crate::many::Many;
use crate::product::{Candidates, Table};
use crate::select::Maxima;
use crate::short::Short;
use crate::single::{One, Stored};
use crate::softmax::Logit;
use crate::tile::{Keys, PANEL, Pass, Queries, Rule};

/// The kernels of one instruction set. Every entry asserts its lengths and cannot fail otherwise.
pub struct Kernels {
    /// The set.
    pub isa: Isa,
    /// The same first pass in bfloat16, where that is faster.
    pub short: Option<Short>,
    /// First pass fused with selection: see [`crate::select`]. `thresholds` has one entry per lane, the last panel's unused
    /// lanes included; bit r of `live` says whether key row r may pass.
    pub select: fn(rule: Rule, keys: Keys, live: u64, queries: Queries, thresholds: &[f32], out: &mut Vec<Pass>),
    /// The same for one query, over keys as they are stored: see [`crate::single`].
    pub select_one: fn(rule: Rule, keys: Stored, live: u64, query: One, out: &mut Vec<Pass>),
    /// Better scores of what something coarser let pass: see [`crate::single`].
    pub refine: fn(keys: Stored, queries: &[f32], padded: usize, passes: &mut [Pass]),
    /// The same for any number of queries, over keys in codes: see [`crate::codes`].
    pub select_codes: fn(keys: Codes, live: u64, queries: &[Query], thresholds: &[f32], out: &mut Vec<Pass>),
    /// The same for many queries at once, where products of bytes are faster.
    pub many: Option<Many>,
    /// Product keys in codes, where products of bytes are faster: see [`crate::halves`].
    pub halves: Option<Halves>,
    /// A key times `unit` in codes: see [`crate::codes`].
    pub code: fn(key: &[f32], unit: f64, out: &mut [u8]) -> Coded,
    /// All first-pass scores of a block, stored at row `first` of panels of `rows` rows.
    pub scores: fn(rule: Rule, keys: Keys, queries: Queries, out: &mut [f32], rows: usize, first: usize),
    /// The same for `n` queries that stand one after the other, over keys as they are stored: each query has `rows` of `out`.
    /// The same bits whatever the format, if it says the same numbers.
    pub scores_few: fn(rule: Rule, keys: Stored, queries: &[f32], n: usize, out: &mut [f32], rows: usize),
    /// The largest first-pass scores of groups of a block's rows.
    pub maxima: fn(rule: Rule, keys: Keys, queries: Queries, out: Maxima),
    /// A score that at least `k` rows of a panel `[n, 16]` reach, for each query: see [`crate::kth`].
    pub reached_by: fn(panel: &[f32], k: usize, out: &mut [f32; PANEL]),
    /// A score that at least `k` of one query's reach.
    pub reached_by_one: fn(scores: &[f32], k: usize) -> f32,
    /// Scores to logits, in place.
    pub logits: fn(scores: &mut [f32], logit: Logit),
    /// Logits to exponentials, with each query's maximum and sum.
    pub exponentials: fn(panel: &mut [f32], max: &mut [f32; PANEL], sum: &mut [f32; PANEL]),
    /// The same for one query, whose logits are a multiple of [`PANEL`]; returns its maximum and sum.
    pub exponentials_one: fn(logits: &mut [f32]) -> (f32, f32),
    /// Weighted sums of `n` value rows for a panel of queries, added to `out`.
    pub weigh: fn(weights: &[f32], values: &[f32], stride: usize, n: usize, out: &mut [f32]),
    /// The same for `n` queries with weights `rows` apart, over values as they are stored.
    pub weigh_few: fn(weights: &[f32], rows: usize, values: Stored, n: usize, out: &mut [f32]),
    /// Vectors as they are stored, in float32, `stride` numbers from row to row: a multiple of [`PANEL`].
    pub widen: fn(from: Stored, out: &mut [f32], stride: usize),
    /// A float32 inner product: see [`crate::softmax`].
    pub dot: fn(x: &[f32], y: &[f32]) -> f32,
    /// `out += weight * row`.
    pub add_scaled: fn(weight: f32, row: &[f32], out: &mut [f32]),
    /// `out = keep * out + add * row`.
    pub blend: fn(keep: f32, out: &mut [f32], add: f32, row: &[f32]),
    /// The canonical scores of keys that stand one after the other, for one query: see [`crate::canonical`].
    pub score: fn(metric: Metric, keys: &[f32], q: &[f32], query_norm: f64, out: &mut [f32]),
    /// The same sums of products for some rows of a table, unrounded.
    pub products: fn(rows: Chosen, q: &[f32], out: &mut [f64]),
    /// The largest score of each `per` rows of a panel: see [`crate::product`].
    pub group_maxima: fn(panel: &[f32], per: usize, out: &mut [f32]),
    /// The rows of a panel whose scores reach their query's threshold.
    pub collect: fn(panel: &[f32], thresholds: &[f32; PANEL], out: &mut [Candidates; PANEL]),
    /// Where each score stands in descending order; equal ones stand at the same place.
    pub ranks: fn(scores: &[f32], out: &mut Vec<u32>),
    /// Weighted sums of some rows of a table, added to `out`.
    pub bag: fn(table: Table, rows: &[u32], weights: &[f32], out: &mut [f32]),
    /// The inner products of a vector with some rows of a table.
    pub row_products: fn(table: Table, rows: &[u32], q: &[f32], out: &mut [f32]),
    /// What a key loses when it is rounded to bfloat16: see [`crate::short`].
    pub lost: fn(x: &[f32]) -> f32,
    /// The canonical sum of squares.
    pub square_norm: fn(x: &[f32]) -> f64,
    /// Numbers out of their halves: what [`crate::convert::join`] calls.
    pub join: fn(high: &[u16], low: &[u16], out: &mut [f32]),
}

impl Kernels {
    /// The table of one set, if this processor can run it.
    pub fn of(isa: Isa) -> Option<&'static Kernels> {
        isa.is_available().then_some(match isa {
            Isa::Portable => &crate::portable::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &crate::avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &crate::avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &crate::vnni::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => &crate::avx512bf16::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &crate::amx::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            _ => &crate::portable::TABLE,
        })
    }

    /// The canonical score of one key.
    pub fn score_one(&self, metric: Metric, key: &[f32], q: &[f32], query_norm: f64) -> f32 {
        let mut score = [0.0];
        (self.score)(metric, key, q, query_norm, &mut score);
        score[0]
    }

    /// The table that [`Isa::chosen`] names; decided at the first call.
    ///
    /// # Errors
    /// When `MNEMEX_ISA` names a set that cannot be taken.
    pub fn best() -> Result<&'static Kernels, IsaError> {
        static BEST: OnceLock<Result<&'static Kernels, IsaError>> = OnceLock::new();
        BEST.get_or_init(|| Isa::chosen().map(|isa| Kernels::of(isa).unwrap_or(&crate::portable::TABLE))).clone()
    }
}

/// Instantiates every operation for one set of lanes under its target features, and collects them in `TABLE`.
///
/// Per operation: a function with the features enabled, whose body is the generic one inlined, and a safe entry of the
/// table's type that calls it. Features are `()` for the baseline.
macro_rules! kernel_table {
    (
        $(#[doc = $doc:literal])*
        isa: $isa:ident, lanes: $lanes:ident, features: ($($features:tt)*)
    ) => {
        $(#[doc = $doc])*
        pub(crate) static TABLE: crate::Kernels = crate::Kernels {
            isa: crate::Isa::$isa,
            short: None,
            select: entry::select,
            select_one: entry::select_one,
            refine: entry::refine,
            select_codes: entry::select_codes,
            many: None,
            halves: None,
            code: entry::code,
            scores: entry::scores,
            scores_few: entry::scores_few,
            maxima: entry::maxima,
            reached_by: entry::reached_by,
            reached_by_one: entry::reached_by_one,
            logits: entry::logits,
            exponentials: entry::exponentials,
            exponentials_one: entry::exponentials_one,
            weigh: entry::weigh,
            weigh_few: entry::weigh_few,
            widen: entry::widen,
            dot: entry::dot,
            add_scaled: entry::add_scaled,
            blend: entry::blend,
            score: entry::score,
            products: entry::products,
            group_maxima: entry::group_maxima,
            collect: entry::collect,
            ranks: entry::ranks,
            bag: entry::bag,
            row_products: entry::row_products,
            lost: entry::lost,
            square_norm: entry::square_norm,
            join: entry::join,
        };

        mod entry {
            use super::$lanes as L;
            use crate::canonical::{self, Chosen, Metric};
            use crate::codes::{self, Coded, Codes, Query};
            use crate::{convert, few, kth, short};
            use crate::product::{self, Candidates, Table};
            use crate::softmax::{self, Logit};
            use crate::tile::{Keys, PANEL, Pass, Queries, Rule};
            use crate::select::{self, Maxima};
            use crate::single::{self, One, Stored};
            use crate::weigh;

            crate::table::kernel_table!(@entries ($($features)*)
                select(rule: Rule, keys: Keys, live: u64, queries: Queries, thresholds: &[f32], out: &mut Vec<Pass>)
                    => select::select::<L>;
                select_one(rule: Rule, keys: Stored, live: u64, query: One, out: &mut Vec<Pass>) => single::select::<L>;
                refine(keys: Stored, queries: &[f32], padded: usize, passes: &mut [Pass]) => single::refine::<L>;
                select_codes(keys: Codes, live: u64, queries: &[Query], thresholds: &[f32], out: &mut Vec<Pass>)
                    => codes::select::<L, L>;
                code(key: &[f32], unit: f64, out: &mut [u8]) -> Coded => codes::code;
                scores(rule: Rule, keys: Keys, queries: Queries, out: &mut [f32], rows: usize, first: usize)
                    => select::scores::<L>;
                scores_few(rule: Rule, keys: Stored, queries: &[f32], n: usize, out: &mut [f32], rows: usize)
                    => few::scores::<L>;
                maxima(rule: Rule, keys: Keys, queries: Queries, out: Maxima) => select::maxima::<L>;
                reached_by(panel: &[f32], k: usize, out: &mut [f32; PANEL]) => kth::reached_by::<L>;
                reached_by_one(scores: &[f32], k: usize) -> f32 => kth::reached_by_one::<L>;
                logits(scores: &mut [f32], logit: Logit) => softmax::logits;
                exponentials(panel: &mut [f32], max: &mut [f32; PANEL], sum: &mut [f32; PANEL])
                    => softmax::exponentials::<L>;
                exponentials_one(logits: &mut [f32]) -> (f32, f32) => softmax::exponentials_one::<L>;
                weigh(weights: &[f32], values: &[f32], stride: usize, n: usize, out: &mut [f32]) => weigh::weigh::<L>;
                weigh_few(weights: &[f32], rows: usize, values: Stored, n: usize, out: &mut [f32])
                    => weigh::weigh_few::<L>;
                widen(from: Stored, out: &mut [f32], stride: usize) => few::widen::<L>;
                dot(x: &[f32], y: &[f32]) -> f32 => softmax::dot;
                add_scaled(weight: f32, row: &[f32], out: &mut [f32]) => softmax::add_scaled;
                blend(keep: f32, out: &mut [f32], add: f32, row: &[f32]) => softmax::blend;
                score(metric: Metric, keys: &[f32], q: &[f32], query_norm: f64, out: &mut [f32])
                    => canonical::scores::<L>;
                products(rows: Chosen, q: &[f32], out: &mut [f64]) => canonical::products::<L>;
                group_maxima(panel: &[f32], per: usize, out: &mut [f32]) => product::group_maxima::<L>;
                collect(panel: &[f32], thresholds: &[f32; PANEL], out: &mut [Candidates; PANEL])
                    => product::collect::<L>;
                ranks(scores: &[f32], out: &mut Vec<u32>) => product::ranks;
                bag(table: Table, rows: &[u32], weights: &[f32], out: &mut [f32]) => product::bag::<L>;
                row_products(table: Table, rows: &[u32], q: &[f32], out: &mut [f32]) => product::row_products::<L>;
                lost(x: &[f32]) -> f32 => short::lost;
                square_norm(x: &[f32]) -> f64 => canonical::square_norm::<L>;
                join(high: &[u16], low: &[u16], out: &mut [f32]) => convert::joined;
            );
        }
    };
    (@entries $features:tt
        $($name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? => $body:expr;)*
    ) => {
        $(crate::table::kernel_table!(@entry $features $name($($arg: $type),*) $(-> $ret)? => $body);)*
    };
    (@entry ($($enable:tt)*) $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? => $body:expr) => {
        pub(super) fn $name($($arg: $type),*) $(-> $ret)? {
            crate::table::kernel_table!(@enabled ($($enable)*) fn run($($arg: $type),*) $(-> $ret)? {
                #[allow(unused_unsafe, reason = "only operations over lanes are unsafe")]
                // SAFETY: this function enables what the lanes need.
                unsafe { $body($($arg),*) }
            });
            #[allow(unused_unsafe, reason = "the baseline enables nothing")]
            // SAFETY: the entry is reachable through `TABLE` alone, which `Kernels::of` hands out after detection.
            unsafe { run($($arg),*) }
        }
    };
    (@enabled () $($function:tt)*) => { #[inline] $($function)* };
    (@enabled ($($enable:tt)+) $($function:tt)*) => { #[target_feature($($enable)+)] $($function)* };
}
pub(crate) use kernel_table;
