//! The thread's rounding mode: a library of the caller's may have left it flushing small numbers to zero, and then the
//! same keys would give other scores.
#![expect(unsafe_code, reason = "the control register is read and written in assembly")]

/// Computes as IEEE 754 says by default: to nearest, with small numbers kept, no exception raised. Puts the thread back
/// as it was.
pub fn by_default<T>(body: impl FnOnce() -> T) -> T {
    let _mode = mode::Default::enter();
    body()
}

#[cfg(target_arch = "x86_64")]
mod mode {
    use std::arch::asm;

    /// All exceptions masked, to nearest, nothing flushed.
    const DEFAULT: u32 = 0x1F80;
    /// Exceptions that were seen: no part of the mode.
    const FLAGS: u32 = 0x3F;

    /// Puts the mode back when dropped, also by a panic.
    pub(super) struct Default(Option<u32>);

    impl Default {
        pub(super) fn enter() -> Default {
            let before = read();
            let differs = before & !FLAGS != DEFAULT;
            if differs {
                write(DEFAULT);
            }
            Default(differs.then_some(before))
        }
    }

    impl Drop for Default {
        fn drop(&mut self) {
            if let Some(before) = self.0 {
                write(before);
            }
        }
    }

    fn read() -> u32 {
        let mut mode = 0u32;
        // SAFETY: stores the register into this variable; every x86_64 processor has it.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack)) };
        mode
    }

    fn write(mode: u32) {
        // SAFETY: `mode` came from `read` or is the default, so no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack)) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod mode {
    pub(super) struct Default;

    impl Default {
        pub(super) fn enter() -> Default {
            Default
        }
    }
}
