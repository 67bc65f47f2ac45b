//! Instruction sets and the choice among them at run time.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::error::{KernelError, Result};

/// Environment variable that forces an instruction set for the whole process.
pub const ISA_VARIABLE: &str = "TESSERA_ISA";

/// An instruction path of the kernels, worst first so that `<` compares ability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable safe Rust: the definition the other paths are tested against.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F/BW/DQ/VL with VNNI.
    Avx512Vnni,
    /// AVX-512 VNNI plus the int8 matrix tiles of AMX for passes of many rows.
    Amx,
}

impl Isa {
    /// Every path, best first.
    pub const ALL: [Isa; 4] = [Isa::Amx, Isa::Avx512Vnni, Isa::Avx2, Isa::Scalar];

    /// The path this process uses: the best one there is, or the one `TESSERA_ISA` names.
    ///
    /// Looked up once. Errors: the variable holds an unknown name, or names a path that this
    /// machine lacks (the error lists those it has).
    pub fn active() -> Result<Isa> {
        static ACTIVE: OnceLock<Result<Isa>> = OnceLock::new();
        ACTIVE
            .get_or_init(|| match std::env::var(ISA_VARIABLE) {
                Ok(name) if !name.trim().is_empty() => name.parse::<Isa>()?.require(),
                _ => Ok(Isa::best()),
            })
            .clone()
    }

    /// The best path of this machine, whatever the environment says.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// The paths of this machine, best first; never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine (and its operating system) can run the path.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => has_avx2(),
            Isa::Avx512Vnni => has_avx512(),
            Isa::Amx => has_amx(),
        }
    }

    /// `self` if this machine has it, else an error that names what there is.
    pub fn require(self) -> Result<Isa> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(KernelError::IsaUnavailable { wanted: self, available: Isa::available() })
        }
    }

    /// The name accepted by `TESSERA_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512",
            Isa::Amx => "amx",
        }
    }

    pub(crate) fn list(isas: &[Isa]) -> String {
        isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = KernelError;

    fn from_str(s: &str) -> Result<Isa> {
        let lower = s.trim().to_ascii_lowercase();
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == lower)
            .ok_or_else(|| KernelError::UnknownIsa(s.to_owned()))
    }
}

/// Whether kernels that stream from memory should ask for lines ahead of their use.
///
/// Intel's prefetchers leave a good part of the bandwidth unused by one slow stream, and asking
/// helps; AMD's follow a stream by themselves, and asking for its lines halves what two cores
/// read. Looked up once; changes speed only.
pub(crate) fn asks_ahead() -> bool {
    static ASKS: OnceLock<bool> = OnceLock::new();
    *ASKS.get_or_init(|| !is_amd())
}

/// Whether the processor says it is AMD's, or a licensee's.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
    [&b"AuthenticAMD"[..], b"HygonGenuine"].contains(&vendor.as_flattened())
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

fn has_amx() -> bool {
    has_avx512() && crate::product::has_tiles()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        assert_eq!(" AVX512 ".parse::<Isa>().unwrap(), Isa::Avx512Vnni);
        assert_eq!("neon".parse::<Isa>(), Err(KernelError::UnknownIsa("neon".into())));
    }

    #[test]
    fn the_available_list_is_sorted_and_ends_with_scalar() {
        let list = Isa::available();
        assert_eq!(list.last(), Some(&Isa::Scalar));
        assert!(list.windows(2).all(|w| w[0] > w[1]));
        assert_eq!(list[0], Isa::best());
    }

    #[test]
    fn a_missing_path_is_an_error_that_names_the_others() {
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            let text = isa.require().unwrap_err().to_string();
            assert!(text.contains(isa.name()) && text.contains("scalar"), "{text}");
        }
    }
}
