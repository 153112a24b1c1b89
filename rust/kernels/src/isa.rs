//! Which instruction sets this processor has, and which one is used.

use std::fmt;

/// An instruction set with a kernel table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust that the compiler vectorises for the build's baseline; every machine has it.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with VNNI.
    Avx512Vnni,
    /// The same with BF16.
    Avx512Bf16,
    /// The same, and AMX tiles of it.
    Amx,
}

/// `MNEMEX_ISA` names a path that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaError(String);

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// Every set known to this build, slowest first.
    pub const ALL: [Isa; 6] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx];

    /// The name used by `MNEMEX_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    /// Whether this processor (and operating system) can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("lzcnt")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512.is_available() && crate::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The sets that can run here, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The set to use: the fastest one, or the one that `MNEMEX_ISA` names.
    ///
    /// # Errors
    /// When the variable names no set of this build, or one that this processor lacks.
    pub fn chosen() -> Result<Isa, IsaError> {
        match std::env::var("MNEMEX_ISA") {
            Ok(name) if !name.is_empty() => Isa::named(&name),
            _ => Ok(Isa::available().filter(|isa| isa.is_fast()).last().unwrap_or(Isa::Portable)),
        }
    }

    /// Whether a set that can run is faster than those before it. Measured: on Intel's Emerald Rapids, products of
    /// AVX-512 BF16 have half the rate of float32's (86 against 174 GFLOP/s), on AMD's Zen 4 twice (234 against 117).
    fn is_fast(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self == Isa::Avx512Bf16 {
            let maker = std::arch::x86_64::__cpuid(0);
            return [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() != b"GenuineIntel";
        }
        true
    }

    fn named(name: &str) -> Result<Isa, IsaError> {
        // Asked only in errors: to look for AMX is to ask the system for it.
        let has = || Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ");
        let Some(isa) = Isa::ALL.into_iter().find(|isa| isa.name() == name) else {
            return Err(IsaError(format!(
                "MNEMEX_ISA={name} names no instruction set of this build: set it to one of {}, or unset it",
                has()
            )));
        };
        if !isa.is_available() {
            return Err(IsaError(format!(
                "MNEMEX_ISA={name} needs instructions that this processor lacks or its system does not permit: set it to one of {}, or unset it",
                has()
            )));
        }
        Ok(isa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_the_portable_set() {
        assert_eq!(Isa::available().next(), Some(Isa::Portable));
    }

    #[test]
    fn an_unknown_name_lists_what_there_is() {
        let error = Isa::named("mmx").unwrap_err().to_string();
        assert!(error.contains("MNEMEX_ISA=mmx") && error.contains("portable"), "{error}");
    }

    /// `MNEMEX_REQUIRE_ISA=avx512` turns "not tested here" into a failure, so that CI cannot pass by skipping.
    #[test]
    fn the_required_set_is_available() {
        if let Ok(name) = std::env::var("MNEMEX_REQUIRE_ISA") {
            assert_eq!(Isa::named(&name).map(Isa::name), Ok(name.as_str()));
        }
    }
}
