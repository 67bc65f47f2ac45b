//! What a figure was measured on: processor, its features, cores. Never hosts or paths.

use serde::{Deserialize, Serialize};

/// The hardware line of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name, as the system tells it.
    pub cpu: String,
    /// The vector extensions that matter here.
    pub features: Vec<String>,
    /// Cores that this process may use.
    pub cores: usize,
}

/// Extensions worth telling.
const FEATURES: [&str; 8] = [
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
];

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::of(&text, cores)
    }

    fn of(cpuinfo: &str, cores: usize) -> Self {
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let has = |f: &&str| flags.split_whitespace().any(|flag| flag == *f);
        Self {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            features: FEATURES.iter().filter(|f| has(f)).map(|f| (*f).to_owned()).collect(),
            cores,
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let features = match self.features.is_empty() {
            true => String::new(),
            false => format!(" ({})", self.features.join(", ")),
        };
        let cores =
            if self.cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.cores) };
        format!("{}{features}, {cores}", self.cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_from_what_the_system_tells() {
        let text = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f x\n";
        assert_eq!(Machine::of(text, 2).line(), "Some CPU (avx2, avx512f), 2 cores");
        assert_eq!(Machine::of("", 1).features, Vec::<String>::new());
    }
}
