//! What the process settles before anything else: that this CPU has what the program was built for, room for
//! descriptors, and no core dump with keys in it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{self, Write};

/// The first of these CPU features that the build relies on and this CPU has not, as a sentence for the user. Nothing
/// but comparisons: the code around it is compiled for the very features that may be missing.
macro_rules! missing_of {
    ($detected:ident: $($feature:tt)*) => {
        $(
            if cfg!(target_feature = $feature) && !std::arch::$detected!($feature) {
                return Some(concat!(
                    "longhaul: this program was built for a CPU with `", $feature, "`, which this one has not. ",
                    "Build it on this machine, or anywhere with RUSTFLAGS=\"-C target-cpu=x86-64-v3\" (any x86-64 of the ",
                    "last ten years) or RUSTFLAGS=\"\" (any at all).\n"
                ));
            }
        )*
    };
}

/// What this CPU lacks of what the program was built for.
#[inline(never)]
pub fn unfit_cpu() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    missing_of!(is_x86_feature_detected:
        "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "bmi1" "bmi2" "fma" "f16c" "lzcnt" "movbe" "adx"
        "aes" "pclmulqdq" "sha" "vaes" "vpclmulqdq" "gfni"
        "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni"
        "avx512bitalg" "avx512vpopcntdq" "avx512bf16" "avx512fp16" "avx512vp2intersect" "avxvnni" "avxifma"
    );
    #[cfg(target_arch = "aarch64")]
    missing_of!(is_aarch64_feature_detected:
        "aes" "sha2" "sha3" "crc" "lse" "lse2" "dotprod" "i8mm" "bf16" "fp16" "rcpc" "rcpc2" "sve" "sve2"
    );
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

    #[test]
    fn descriptors_up_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(256), hard).unwrap();
        assert_eq!(raise_descriptor_limit().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
