//! The least set of vector operations the algorithms need; one implementation per instruction set.
#![expect(unsafe_code, reason = "declares what the instruction-set files implement")]

/// A vector of `N` float32 lanes.
///
/// # Safety
/// Every method must be called where the instructions of the implementing type are enabled; pointers must be valid for
/// `N` numbers. The [`crate::table::kernel_table`] macro is the one place that calls into code written over this trait,
/// from functions that enable the instructions, and [`crate::Kernels::of`] hands out a table only where they exist.
pub(crate) trait Lanes: Copy {
    /// Lanes per vector; divides [`crate::PANEL`].
    const N: usize;
    /// Vectors of such lanes that stay in registers.
    const REGISTERS: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    /// `N` numbers of float16, widened.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// `N` numbers of bfloat16, widened.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// `2 N` numbers of bfloat16, widened: those with even and those with odd places, which takes no instruction that
    /// crosses lanes.
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self; 2];
    unsafe fn store(self, p: *mut f32);
    /// `self + a * b`; whether the product is rounded first is the implementation's choice.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// Lane by lane the smaller, or `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Lane by lane the larger, or `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Adds 1 in every lane where `x` is at least `least`.
    unsafe fn count(self, x: Self, least: Self) -> Self;
    /// 2^(b - 127), where b is what the low eight bits of each lane say.
    unsafe fn power_of_two(self) -> Self;
    /// 0 in every lane where `x` is less than `least`; NaN is not.
    unsafe fn zero_where_less(self, x: Self, least: Self) -> Self;
    /// In lane i the sum of all lanes of vector i, of the first `N`.
    unsafe fn sums(vectors: &[Self; crate::PANEL]) -> Self;
    /// The canonical sums of products of some vectors with another as long: the bits of [`crate::canonical::dots`].
    #[inline(always)]
    unsafe fn dots<const M: usize>(x: [&[f32]; M], q: &[f32]) -> [f64; M] {
        crate::canonical::dots(x, q)
    }
    /// Bit i is set unless lane i is less than lane i of `other`: NaN passes.
    unsafe fn not_less(self, other: Self) -> u32;
}
