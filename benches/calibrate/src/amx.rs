//! The tile unit (AMX), for bfloat16 and int8: the rate of its registers alone, and with the tile traffic that a search
//! needs.
//!
//! Tile intrinsics are not stable Rust, so each loop is one block of assembly from configuration to release.
//! `panel` multiplies 32 queries with a panel of keys in the second-level cache, two by two tiles at a time: all
//! operands are loaded, and the scores are stored after every four tiles, which are 128 dimensions of bfloat16 and 256
//! of int8.
#![expect(unsafe_code, reason = "tile instructions and the system call that permits them")]
#![cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the unit exists on x86-64 alone"))]

/// Bytes of keys in a panel.
pub const PANEL_BYTES: usize = 512 << 10;

/// A tile is 16 rows of 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Tile([u8; 1024]);

const ZERO: Tile = Tile([0; 1024]);

/// 32 queries as 2 x 4 tiles, keys as blocks of 2 x 4 tiles, scores as 2 x 2 tiles.
pub struct Panel {
    queries: Box<[Tile; 8]>,
    keys: Vec<[Tile; 8]>,
    scores: Box<[Tile; 4]>,
}

impl Panel {
    /// A panel of zeros: the rate does not depend on the values.
    pub fn new() -> Self {
        Self {
            queries: Box::new([ZERO; 8]),
            keys: vec![[ZERO; 8]; PANEL_BYTES / size_of::<[Tile; 8]>()],
            scores: Box::new([ZERO; 4]),
        }
    }
}

/// The two loops for one kind of number.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Name of the metric.
    pub name: &'static str,
    /// Unit of the rate.
    pub unit: &'static str,
    /// Products in registers.
    pub registers: fn(Unit) -> f64,
    /// Scores of a panel.
    pub panel: fn(Unit, &mut Panel) -> f64,
}

/// Proof that the processor has the unit and the kernel lets this process use it.
#[derive(Clone, Copy)]
pub struct Unit(());

#[cfg(not(target_arch = "x86_64"))]
impl Unit {
    pub fn available() -> Option<Self> {
        None
    }
    pub fn kinds(self) -> [Kernels; 0] {
        []
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    use super::{Kernels, Panel, Unit};

    const STEPS: usize = 1024;

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

    #[target_feature(enable = "xsave")]
    fn tiles_enabled_by_the_system() -> bool {
        const TILE_STATE: u64 = 0b11 << 17;
        // SAFETY: register 0 exists wherever XSAVE is in use, which the caller checked.
        unsafe { _xgetbv(0) & TILE_STATE == TILE_STATE }
    }

    /// Asks Linux for the tile registers; they are denied to a process until it asks.
    fn permitted() -> bool {
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

    impl Unit {
        /// The unit, if the processor has it, the system saves its registers, and Linux permits it.
        pub fn available() -> Option<Self> {
            let features = __cpuid_count(7, 0).edx;
            let kinds = (1 << 22) | (1 << 24) | (1 << 25); // bf16, tiles, int8
            let present =
                cfg!(target_os = "linux") && features & kinds == kinds && std::arch::is_x86_feature_detected!("xsave");
            // SAFETY: XSAVE was detected.
            (present && unsafe { tiles_enabled_by_the_system() } && permitted()).then_some(Self(()))
        }

        /// Both kinds of number: every processor with the unit has both.
        pub fn kinds(self) -> [Kernels; 2] {
            [bf16::KERNELS, int8::KERNELS]
        }
    }

    /// Both loops for one instruction, which multiplies tiles of so many numbers a row.
    macro_rules! kernels {
        ($module:ident, $name:literal, $unit:literal, $dot:literal, $numbers:literal) => {
            mod $module {
                use std::arch::asm;

                use super::{CONFIGURATION, Kernels, Panel, STEPS, Unit};

                /// Operations of one instruction: 16 x 16 sums over the products of a row.
                const TILE_OPERATIONS: usize = 2 * 16 * 16 * $numbers;

                pub const KERNELS: Kernels = Kernels { name: $name, unit: $unit, registers, panel };

        /// Four independent sums over the same four operand tiles.
        fn registers(_proof: Unit) -> f64 {
            // SAFETY: a `Unit` proves the unit; the block touches tiles alone and releases them.
            unsafe {
                asm!(
                    "ldtilecfg [{configuration}]",
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                    "2:",
                    concat!($dot, " tmm4, tmm0, tmm2"), concat!($dot, " tmm5, tmm0, tmm3"),
                    concat!($dot, " tmm6, tmm1, tmm2"), concat!($dot, " tmm7, tmm1, tmm3"),
                    "dec {steps}", "jnz 2b",
                    "tilerelease",
                    configuration = in(reg) &raw const CONFIGURATION, steps = inout(reg) STEPS => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack));
            }
            (4 * STEPS * TILE_OPERATIONS) as f64
        }

        /// Scores of all queries against all keys of the panel.
        fn panel(_proof: Unit, panel: &mut Panel) -> f64 {
            let blocks = panel.keys.len();
            assert!(blocks > 0, "an empty panel has no rate");
            // SAFETY: a `Unit` proves the unit. `a` is 2 x 4 tiles, `b` walks `blocks` blocks of 2 x 4 tiles and `c` is
            // 2 x 2 tiles, each tile 16 rows 64 bytes apart; the block releases the tiles.
            unsafe {
                asm!(
                    "ldtilecfg [{configuration}]",
                    "2:",
                    "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                    ".irp offset, 0, 1024, 2048, 3072",
                    "tileloadd tmm0, [{a} + {row}*1 + \\offset]", "tileloadd tmm1, [{a} + {row}*1 + 4096 + \\offset]",
                    "tileloadd tmm2, [{b} + {row}*1 + \\offset]", "tileloadd tmm3, [{b} + {row}*1 + 4096 + \\offset]",
                    concat!($dot, " tmm4, tmm0, tmm2"), concat!($dot, " tmm5, tmm0, tmm3"),
                    concat!($dot, " tmm6, tmm1, tmm2"), concat!($dot, " tmm7, tmm1, tmm3"),
                    ".endr",
                    "tilestored [{c} + {row}*1], tmm4", "tilestored [{c} + {row}*1 + 1024], tmm5",
                    "tilestored [{c} + {row}*1 + 2048], tmm6", "tilestored [{c} + {row}*1 + 3072], tmm7",
                    "add {b}, 8192",
                    "dec {blocks}", "jnz 2b",
                    "tilerelease",
                    configuration = in(reg) &raw const CONFIGURATION, row = in(reg) 64usize,
                    a = in(reg) panel.queries.as_ptr(), b = inout(reg) panel.keys.as_ptr() => _,
                    c = in(reg) panel.scores.as_mut_ptr(), blocks = inout(reg) blocks => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack));
            }
            (16 * blocks * TILE_OPERATIONS) as f64
        }
            }
        };
    }

    kernels!(bf16, "amx_bf16", "GFLOP/s", "tdpbf16ps", 32);
    kernels!(int8, "amx_int8", "GOP/s", "tdpbssd", 64);
}
