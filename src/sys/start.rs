//! What the process settles before anything else: that this CPU has what the program was built for, room for
//! descriptors, and no core dump with keys in it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{self, Write};

#[cfg(target_arch = "x86_64")]
const NO_STATE: u32 = 0;
#[cfg(target_arch = "x86_64")]
const AVX_STATE: u32 = 0b110;
#[cfg(target_arch = "x86_64")]
const AVX512_STATE: u32 = 0b1110_0110;

/// What this CPU lacks of what the program was built for.
///
/// It is asked by hand, because `is_x86_feature_detected!` answers `true` without a look for every feature that the build
/// takes for granted: just those that may be missing. Numbers stay in general registers, one by one: the compiler would
/// clear or move a struct of them with the very AVX that may not be there.
#[cfg(target_arch = "x86_64")]
pub fn unfit_cpu() -> Option<&'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let leaves = __cpuid(0).eax;
    let one_c = __cpuid(1).ecx;
    let seven = |sub: u32| leaves >= 7 && (sub == 0 || __cpuid_count(7, 0).eax >= sub);
    let seven_b = if seven(0) { __cpuid_count(7, 0).ebx } else { 0 };
    let seven_c = if seven(0) { __cpuid_count(7, 0).ecx } else { 0 };
    let seven_d = if seven(0) { __cpuid_count(7, 0).edx } else { 0 };
    let seven_1_a = if seven(1) { __cpuid_count(7, 1).eax } else { 0 };
    let more_c = if __cpuid(0x8000_0000).eax > 0x8000_0000 { __cpuid(0x8000_0001).ecx } else { 0 };
    lacking(one_c, seven_b, seven_c, seven_d, seven_1_a, more_c, saved_states(one_c))
}

/// See the other one: packages for other processors are built for their common denominator.
#[cfg(not(target_arch = "x86_64"))]
pub fn unfit_cpu() -> Option<&'static str> {
    None
}

/// Register files that the kernel saves: AVX's and AVX-512's are of no use without.
#[cfg(target_arch = "x86_64")]
fn saved_states(leaf1_c: u32) -> u32 {
    const OSXSAVE: u32 = 1 << 27;
    if leaf1_c & OSXSAVE == 0 {
        return 0;
    }
    let states: u32;
    #[allow(unsafe_code)]
    // SAFETY: the kernel has switched XGETBV on, as the bit says; register 0 exists wherever it has. The instruction
    // changes nothing but the two registers.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") states, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    states
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn saved(needed: u32, states: u32) -> bool {
    needed & !states == 0
}

/// The first feature that the build relies on and these words of bits lack, as a sentence.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn lacking(
    one_c: u32,
    seven_b: u32,
    seven_c: u32,
    seven_d: u32,
    seven_1_a: u32,
    more_c: u32,
    states: u32,
) -> Option<&'static str> {
    macro_rules! check {
            ($($word:ident $state:expr => $($feature:tt $bit:literal),*;)*) => {
                $($(
                    if cfg!(target_feature = $feature) && ($word >> $bit & 1 == 0 || !saved($state, states)) {
                        return Some(concat!(
                            "longhaul: this program was built for a CPU with `", $feature, "`, which this one has not. ",
                            "Build it on this machine, or with RUSTFLAGS=\"-C target-cpu=x86-64-v3\" (x86-64 from ",
                            "about 2015 on) or RUSTFLAGS=\"-C target-cpu=x86-64\" (any x86-64).\n"
                        ));
                    }
                )*)*
            };
        }
    check! {
        one_c NO_STATE => "sse3" 0, "pclmulqdq" 1, "ssse3" 9, "sse4.1" 19, "sse4.2" 20, "movbe" 22, "popcnt" 23, "aes" 25;
        one_c AVX_STATE => "avx" 28, "fma" 12, "f16c" 29;
        seven_b NO_STATE => "bmi1" 3, "bmi2" 8, "adx" 19, "sha" 29;
        more_c NO_STATE => "lzcnt" 5;
        seven_b AVX_STATE => "avx2" 5;
        seven_c NO_STATE => "gfni" 8;
        seven_c AVX_STATE => "vaes" 9, "vpclmulqdq" 10;
        seven_1_a AVX_STATE => "avxvnni" 4, "avxifma" 23;
        seven_b AVX512_STATE => "avx512f" 16, "avx512dq" 17, "avx512ifma" 21, "avx512cd" 28, "avx512bw" 30, "avx512vl" 31;
        seven_c AVX512_STATE => "avx512vbmi" 1, "avx512vbmi2" 6, "avx512vnni" 11, "avx512bitalg" 12, "avx512vpopcntdq" 14;
        seven_d AVX512_STATE => "avx512vp2intersect" 8, "avx512fp16" 23;
        seven_1_a AVX512_STATE => "avx512bf16" 5;
    }
    None
}

/// Ends the process with 1 and a sentence on a CPU that lacks what the program was built for; otherwise it would die of
/// SIGILL somewhere in the middle of a transfer.
pub fn require_cpu() {
    if let Some(sentence) = unfit_cpu() {
        let _ = io::stderr().write_all(sentence.as_bytes());
        std::process::exit(1);
    }
}

/// Raises the soft limit of open descriptors to the hard one: the soft one is low for the sake of `select`, which nothing
/// here uses. What is allowed then.
///
/// # Errors
/// The kernel's refusal; the old limit goes on.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_that_runs_the_tests_is_fit() {
        assert_eq!(unfit_cpu(), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_cpu_without_anything_is_unfit() {
        const ALL: u32 = u32::MAX;
        let asked = |feature: bool, name: &str, refused: Option<&str>| {
            assert_eq!(refused.is_some_and(|sentence| sentence.contains(&format!("`{name}`"))), feature, "{name}");
        };
        asked(cfg!(target_feature = "sse3"), "sse3", lacking(0, 0, 0, 0, 0, 0, 0));
        // A kernel that does not save AVX registers makes AVX unusable, whatever CPUID says.
        asked(cfg!(target_feature = "avx"), "avx", lacking(ALL, ALL, ALL, ALL, ALL, ALL, 0));
        asked(cfg!(target_feature = "avx512f"), "avx512f", lacking(ALL, ALL, ALL, ALL, ALL, ALL, AVX_STATE));
        asked(cfg!(target_feature = "bmi2"), "bmi2", lacking(ALL, !(1 << 8), ALL, ALL, ALL, ALL, ALL));
        assert_eq!(lacking(ALL, ALL, ALL, ALL, ALL, ALL, ALL), None);
    }

    #[test]
    fn descriptors_up_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(256), hard).unwrap();
        assert_eq!(raise_descriptor_limit().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
