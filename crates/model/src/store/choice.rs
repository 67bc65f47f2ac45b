//! Which files of a repository a reference means.

/// Quantisations in the order preferred when the reference names none: the usual
/// default first, then what this engine runs fastest, then the rest by size.
const PREFERRED: [&str; 18] = [
    "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16", "FP16", "F32",
];

/// The files beside safetensors that a model needs or may need.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// What to take of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// One GGUF file.
    File(&'a str),
    /// Safetensors and what goes with them.
    Directory(Vec<&'a str>),
}

/// Chooses among file names. `quant` is upper case. The error is one line that says
/// what there is.
pub(super) fn choose<'a>(names: &[&'a str], quant: Option<&str>) -> Result<Choice<'a>, String> {
    let gguf: Vec<&str> = names.iter().copied().filter(|n| is_model_gguf(n)).collect();
    let whole: Vec<&str> = gguf.iter().copied().filter(|n| !is_split(n)).collect();
    if let Some(quant) = quant {
        return match pick(&whole, quant) {
            Some(name) => Ok(Choice::File(name)),
            None if gguf.is_empty() => Err("the repository has no GGUF file".to_owned()),
            None if pick(&gguf, quant).is_some() => {
                Err(format!("its {quant} is split over several files, which are not joined"))
            }
            None => Err(format!("it has no {quant}; there is {}", known(&whole))),
        };
    }
    if let Some(name) = PREFERRED.iter().find_map(|quant| pick(&whole, quant)) {
        return Ok(Choice::File(name));
    }
    match (whole.as_slice(), gguf.is_empty()) {
        ([only], _) => return Ok(Choice::File(only)),
        ([], false) => return Err("its GGUF files are split, and parts are not joined".to_owned()),
        ([_, ..], _) => return Err(format!("name one of its files' types: {}", known(&whole))),
        ([], true) => {}
    }
    let weights: Vec<&str> = names
        .iter()
        .copied()
        .filter(|n| {
            n.ends_with(".safetensors") && !n.contains('/') && !n.starts_with("consolidated")
        })
        .collect();
    if weights.is_empty() || !names.contains(&"config.json") {
        return Err("it has neither GGUF files nor safetensors with a config.json".to_owned());
    }
    let companions = names.iter().copied().filter(|n| COMPANIONS.contains(n));
    Ok(Choice::Directory(companions.chain(weights).collect()))
}

/// How a GGUF file is called in a listing: its quantisation, else its name.
pub(super) fn label(name: &str) -> String {
    PREFERRED
        .iter()
        .find(|quant| names_quant(name, quant))
        .map_or_else(|| name.to_owned(), |quant| (*quant).to_owned())
}

fn pick<'a>(names: &[&'a str], quant: &str) -> Option<&'a str> {
    // Several may fit (`a-Q8_0.gguf`, `sub/a-Q8_0.gguf`): the shortest name is the plain one.
    names.iter().copied().filter(|n| names_quant(n, quant)).min_by_key(|n| (n.len(), *n))
}

/// Whether a file name spells this quantisation as a word of its own: `x-q4_k_m.gguf`
/// is `Q4_K_M` and not `Q4_K`.
fn names_quant(name: &str, quant: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.match_indices(quant).any(|(at, _)| {
        let before = name.get(..at).and_then(|s| s.chars().next_back());
        let after = name.get(at + quant.len()..).and_then(|s| s.chars().next());
        before.is_none_or(|c| !c.is_ascii_alphanumeric())
            && after.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_')
    })
}

/// A GGUF of a language model, not of a projector or of calibration data.
fn is_model_gguf(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("imatrix")
}

/// `...-00001-of-00003.gguf`.
fn is_split(name: &str) -> bool {
    let stem = name.get(..name.len().saturating_sub(5)).unwrap_or_default();
    let mut words = stem.rsplit('-');
    let number =
        |w: Option<&str>| w.is_some_and(|w| w.len() == 5 && w.bytes().all(|b| b.is_ascii_digit()));
    number(words.next()) && words.next() == Some("of") && number(words.next())
}

fn known(names: &[&str]) -> String {
    let mut labels: Vec<String> = names.iter().map(|n| label(n)).collect();
    labels.sort();
    labels.dedup();
    labels.truncate(20);
    if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 6] = [
        "README.md",
        "m-q4_k_s.gguf",
        "m-q8_0.gguf",
        "m-Q6_K_L.gguf",
        "mmproj-q4_k_m.gguf",
        "big-q5_0-00001-of-00002.gguf",
    ];

    #[test]
    fn a_quantisation_is_a_whole_word_in_any_case() {
        assert_eq!(choose(&FILES, Some("Q8_0")), Ok(Choice::File("m-q8_0.gguf")));
        assert_eq!(choose(&FILES, Some("Q6_K_L")), Ok(Choice::File("m-Q6_K_L.gguf")));
        let e = choose(&FILES, Some("Q6_K")).unwrap_err();
        assert!(e.contains("no Q6_K;") && e.contains("Q8_0"), "{e}");
        assert!(choose(&FILES, Some("Q5_0")).unwrap_err().contains("split"));
        // The projector is not the model.
        assert!(choose(&FILES, Some("Q4_K_M")).is_err());
    }

    #[test]
    fn without_one_the_preferred_or_only_file_is_taken() {
        assert_eq!(choose(&FILES, None), Ok(Choice::File("m-q4_k_s.gguf")));
        let both = ["a.Q2_K.gguf", "a.Q4_K_M.gguf"];
        assert_eq!(choose(&both, None), Ok(Choice::File("a.Q4_K_M.gguf")));
        assert_eq!(choose(&["odd.gguf", "x.txt"], None), Ok(Choice::File("odd.gguf")));
        assert!(
            choose(&["odd.gguf", "even.gguf"], None).unwrap_err().contains("even.gguf, odd.gguf")
        );
        assert!(choose(&["a-00001-of-00002.gguf"], None).unwrap_err().contains("split"));
        assert!(choose(&["README.md"], None).unwrap_err().contains("neither"));
    }

    #[test]
    fn safetensors_come_with_their_companions() {
        let names = [
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "x/y.safetensors",
            "consolidated.safetensors",
            "train.py",
        ];
        assert_eq!(
            choose(&names, None),
            Ok(Choice::Directory(vec!["config.json", "tokenizer.json", "model.safetensors"]))
        );
        assert!(choose(&names, Some("Q8_0")).unwrap_err().contains("no GGUF"));
    }
}
