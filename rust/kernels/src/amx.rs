//! AMX: a first pass in bfloat16, thirty-two keys against thirty-two queries per step of thirty-two numbers.
//!
//! Keys are tiles of the A operand as they lie, row-major; queries are packed as B, sixteen to a panel and two numbers
//! side by side, so that a row of the result is one key against sixteen queries, as everywhere in [`crate::tile`].
//! Tile intrinsics are not stable Rust: the three pieces below are assembly. Everything else is AVX-512.
#![expect(unsafe_code, reason = "tile instructions, and the system call that permits them")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use crate::avx512::F32x16;
use crate::avx512bf16;
use crate::lanes::Lanes;
use crate::prefetch::prefetch_next;
use crate::select::{Largest, Maxima, Passing};
use crate::short::{self, NUMBERS, Short, ShortKeys, ShortQueries};
use crate::tile::{PANEL, Pass, Sink};
use crate::{Isa, Kernels};

/// AVX-512 BF16, VNNI and AMX for first passes; AVX-512 for the rest.
pub(crate) static TABLE: Kernels = Kernels {
    isa: Isa::Amx,
    short: Some(Short { select: entry::select, maxima: entry::maxima, ..avx512bf16::SHORT }),
    ..crate::vnni::TABLE
};

/// Whether the processor has the unit, the system saves its registers, and Linux lets this process use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let features = __cpuid_count(7, 0).edx;
        let (bf16, tile) = (features & (1 << 22) != 0, features & (1 << 24) != 0);
        let present = cfg!(target_os = "linux")
            && bf16
            && tile
            && Isa::Avx512Bf16.is_available()
            && is_x86_feature_detected!("xsave");
        // SAFETY: XSAVE was detected.
        present && unsafe { tiles_are_saved() } && tiles_are_permitted()
    })
}

#[target_feature(enable = "xsave")]
fn tiles_are_saved() -> bool {
    const TILE_STATE: u64 = 0b11 << 17;
    // SAFETY: register 0 exists wherever XSAVE is in use, which the caller checked.
    unsafe { _xgetbv(0) & TILE_STATE == TILE_STATE }
}

/// Asks Linux for the tile registers; they are denied to a process until it asks.
fn tiles_are_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: i64;
    // SAFETY: the call changes nothing but this process's permission; the kernel clobbers rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Palette 1, and for each of eight tiles 64 bytes per row and 16 rows.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

static CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

/// Bytes of a tile, and of the rows of a packed one.
const TILE: usize = 1024;
const ROW: usize = 64;

/// Scores of 64 keys against four panels, panel by panel.
#[repr(C, align(64))]
struct Scores([f32; 4 * 64 * PANEL]);

/// Scores of all 64 key rows against up to four panels of queries from `panel` on.
///
/// # Safety
/// Lengths are as [`ShortKeys`] and [`ShortQueries`] assert, `out` can be written; AMX is permitted.
#[inline(always)]
unsafe fn multiply(keys: &ShortKeys, queries: &ShortQueries, panel: usize, panels: usize, out: *mut Scores) {
    let steps = short::padded(queries.dim) / NUMBERS;
    let stride = keys.stride * size_of::<u16>();
    let panel_bytes = steps * TILE;
    let (a, b) = (keys.rows.as_ptr().cast::<u8>(), queries.panels.as_ptr().cast::<u8>());
    let c = out.cast::<u8>();
    // SAFETY: the tiles stay as configured from the first block to the last: the compiler makes no tile instruction of
    // its own and nothing is called between. Addresses are those of 64 rows, existing panels, and 4 x 64 rows of scores.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
        let b = b.add(panel * panel_bytes);
        for pair in (0..panels).step_by(2) {
            let (b, c) = (b.add(pair * panel_bytes), c.add(pair * 64 * ROW));
            for half in 0..2 {
                let (a, c) = (a.add(half * 32 * stride), c.add(half * 32 * ROW));
                if pair + 1 < panels {
                    asm!(
                        "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                        "2:",
                        "tileloadd tmm0, [{a} + {stride}*1]", "tileloadd tmm2, [{b} + {row}*1]",
                        "tileloadd tmm3, [{b2} + {row}*1]", "tileloadd tmm1, [{a2} + {stride}*1]",
                        "tdpbf16ps tmm4, tmm0, tmm2", "tdpbf16ps tmm5, tmm0, tmm3",
                        "tdpbf16ps tmm6, tmm1, tmm2", "tdpbf16ps tmm7, tmm1, tmm3",
                        "add {a}, 64", "add {a2}, 64", "add {b}, 1024", "add {b2}, 1024",
                        "dec {steps}", "jnz 2b",
                        "tilestored [{c} + {row}*1], tmm4", "tilestored [{c} + {row}*1 + 4096], tmm5",
                        "tilestored [{c} + {row}*1 + 1024], tmm6", "tilestored [{c} + {row}*1 + 5120], tmm7",
                        a = inout(reg) a => _, a2 = inout(reg) a.add(16 * stride) => _, stride = in(reg) stride,
                        b = inout(reg) b => _, b2 = inout(reg) b.add(panel_bytes) => _, row = in(reg) ROW,
                        c = in(reg) c, steps = inout(reg) steps => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack));
                } else {
                    asm!(
                        "tilezero tmm4", "tilezero tmm6",
                        "2:",
                        "tileloadd tmm0, [{a} + {stride}*1]", "tileloadd tmm2, [{b} + {row}*1]",
                        "tileloadd tmm1, [{a2} + {stride}*1]",
                        "tdpbf16ps tmm4, tmm0, tmm2", "tdpbf16ps tmm6, tmm1, tmm2",
                        "add {a}, 64", "add {a2}, 64", "add {b}, 1024",
                        "dec {steps}", "jnz 2b",
                        "tilestored [{c} + {row}*1], tmm4", "tilestored [{c} + {row}*1 + 1024], tmm6",
                        a = inout(reg) a => _, a2 = inout(reg) a.add(16 * stride) => _, stride = in(reg) stride,
                        b = inout(reg) b => _, row = in(reg) ROW, c = in(reg) c, steps = inout(reg) steps => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm4") _, out("tmm6") _,
                        options(nostack));
                }
            }
        }
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
             out("tmm6") _, out("tmm7") _, options(nostack, nomem));
    }
}

/// Hands all scores to the sink, four panels at a time.
///
/// # Safety
/// AVX-512 is enabled and AMX permitted.
#[inline(always)]
unsafe fn each_strip(keys: ShortKeys, queries: ShortQueries, sink: &mut impl Sink<F32x16>) {
    keys.check(&queries);
    let mut scores = MaybeUninit::<Scores>::uninit();
    let all = queries.n.div_ceil(PANEL);
    for panel in (0..all).step_by(4) {
        let panels = (all - panel).min(4);
        let piece = |panel: usize| keys.next.len() * panel.min(all) / all;
        let next = &keys.next[piece(panel)..piece(panel + 4)];
        // SAFETY: lengths were checked; the rest is the caller's promise.
        unsafe {
            multiply(&keys, &queries, panel, panels, scores.as_mut_ptr());
            let scores = scores.as_ptr();
            let lane = panel * PANEL;
            match panels {
                4 => drain::<4>(scores, &keys, next, lane, sink),
                3 => drain::<3>(scores, &keys, next, lane, sink),
                2 => drain::<2>(scores, &keys, next, lane, sink),
                _ => drain::<1>(scores, &keys, next, lane, sink),
            }
        }
    }
}

/// Hands the scores of V panels to the sink, in tiles that fit the registers.
///
/// # Safety
/// AVX-512 is enabled and the scores of V panels were written.
#[inline(always)]
unsafe fn drain<const V: usize>(
    scores: *const Scores,
    keys: &ShortKeys,
    next: &[u8],
    lane: usize,
    sink: &mut impl Sink<F32x16>,
) {
    const R: usize = 4;
    for row in (0..keys.n).step_by(R) {
        let piece = |row: usize| next.len() * row.min(keys.n) / keys.n;
        prefetch_next(&next[piece(row)..piece(row + R)]);
        // SAFETY: R divides 64, the rows of a panel; there is one scale per row below `n`, if any.
        unsafe {
            let at = |r: usize, v: usize| F32x16::load(scores.cast::<f32>().add((v * short::ROWS + row + r) * PANEL));
            let mut tile: [[F32x16; V]; R] = std::array::from_fn(|r| std::array::from_fn(|v| at(r, v)));
            if !keys.scale.is_empty() {
                for (r, scores) in tile.iter_mut().enumerate() {
                    let scale = F32x16::splat(*keys.scale.get_unchecked((row + r).min(keys.n - 1)));
                    *scores = scores.map(|score| score.mul(scale));
                }
            }
            sink.take(row, lane, tile);
        }
    }
}

/// # Safety
/// AVX-512 is enabled and AMX permitted.
#[inline(always)]
unsafe fn select(keys: ShortKeys, live: u64, queries: ShortQueries, thresholds: &[f32], out: &mut Vec<Pass>) {
    let mut passing = Passing::new(keys.n, live, queries.n, thresholds, out);
    // SAFETY: the caller's promise.
    unsafe { each_strip(keys, queries, &mut passing) };
}

/// # Safety
/// AVX-512 is enabled and AMX permitted.
#[inline(always)]
unsafe fn maxima(keys: ShortKeys, queries: ShortQueries, out: Maxima) {
    let mut largest = Largest::new(keys.n, queries.n, out);
    // SAFETY: the caller's promise.
    unsafe { each_strip(keys, queries, &mut largest) };
}

/// Safe entries of the table's types.
mod entry {
    use crate::select::Maxima;
    use crate::short::{ShortKeys, ShortQueries};
    use crate::tile::Pass;

    crate::table::kernel_table!(@entries (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,popcnt,lzcnt,bmi1,bmi2")
        select(keys: ShortKeys, live: u64, queries: ShortQueries, thresholds: &[f32], out: &mut Vec<Pass>)
            => super::select;
        maxima(keys: ShortKeys, queries: ShortQueries, out: Maxima) => super::maxima;
    );
}
