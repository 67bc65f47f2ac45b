//! Tokens with a part in generation, found by their spelling: files rarely name them all. The
//! names are those llama.cpp knows.

use super::{TokenKind, TokenizerError, TokenizerSpec};

/// Tokens for filling in the middle of a text: `prefix ... suffix ... middle`, then the model
/// writes what lies between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillIn {
    /// Comes before the text before the gap.
    pub prefix: u32,
    /// Comes before the text after the gap.
    pub suffix: u32,
    /// Comes last.
    pub middle: u32,
}

/// What spelling alone says about a vocabulary.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub eot: Option<u32>,
    pub fill_in: Option<FillIn>,
    /// Ascending.
    pub ends: Vec<u32>,
    control: Vec<u32>,
    user_defined: Vec<u32>,
    normal: Vec<u32>,
}

const EOT: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const EOM: [&str; 1] = ["<|eom_id|>"];
const PREFIX: [&str; 8] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const SUFFIX: [&str; 8] = [
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const MIDDLE: [&str; 8] = [
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PAD: [&str; 5] = ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const REPO: [&str; 5] = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FILE: [&str; 1] = ["<|file_sep|>"];
/// End generation besides the tokens of the lists above.
const ENDS: [&str; 9] = [
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
];
const LAST_END: &str = "[e~[";
/// Always shown, whatever the file says.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];
const NORMAL_S: [&str; 2] = ["<|tool_response>", "<|plamo:eos|>"];

impl Marks {
    /// Looks for the names among the tokens.
    pub fn find(spec: &TokenizerSpec) -> Self {
        // Few tokens look like a marker at all, and of equal ones the last counts.
        let mut named: Vec<(&str, u32)> = Vec::new();
        for (id, text) in spec.tokens.iter().enumerate() {
            let marker = text.ends_with(['>', ']']) && text.len() <= 32 || text == LAST_END;
            if marker && text.starts_with(['<', '[', '_', '▁']) {
                named.push((text, id as u32));
            }
        }
        named.sort_unstable();
        let id = |name: &str| -> Option<u32> {
            let end = named.partition_point(|(text, _)| *text <= name);
            let (text, id) = named[..end].last()?;
            (*text == name).then_some(*id)
        };
        let first = |names: &[&str]| names.iter().find_map(|name| id(name));

        let mut marks = Self { eot: spec.eot.or_else(|| first(&EOT)), ..Self::default() };
        let eom = spec.eom.or_else(|| first(&EOM));
        let [prefix, suffix, middle] = [first(&PREFIX), first(&SUFFIX), first(&MIDDLE)];
        let file = [first(&FIM_PAD), first(&REPO), first(&FILE)];
        if let (Some(prefix), Some(suffix), Some(middle)) = (prefix, suffix, middle) {
            marks.fill_in = Some(FillIn { prefix, suffix, middle });
        }
        marks.control.extend([prefix, suffix, middle].iter().flatten());
        marks.control.extend(file.iter().flatten());
        let names = EOT.iter().chain(&EOM).chain(&ENDS).chain([&LAST_END]);
        let by_name: Vec<u32> = names.filter_map(|name| id(name)).collect();
        marks.control.extend(&by_name);
        marks.ends = by_name;
        marks.ends.extend(file.iter().flatten());
        marks.ends.extend([spec.eos, marks.eot, eom].iter().flatten());
        marks.ends.extend(&spec.ends);
        marks.ends.sort_unstable();
        marks.ends.dedup();
        marks.user_defined.extend(SHOWN.iter().filter_map(|name| id(name)));

        // With these beside it, `<|end|>` separates messages, and `</s>` is a tag of text.
        let has = |names: &[&str]| names.iter().all(|name| id(name).is_some());
        if let Some(end) = id("<|end|>")
            && (has(&["<|return|>", "<|call|>"])
                || has(&["<|return|>", "<|calls|>"])
                || has(&["<|call|>", "<|flush|>"])
                || has(&["<|calls|>", "<|flush|>"]))
        {
            marks.ends.retain(|id| *id != end);
            marks.user_defined.push(end);
        }
        if let Some(s) = id("</s>")
            && NORMAL_S.iter().any(|name| id(name).is_some_and(|id| marks.ends.contains(&id)))
        {
            marks.ends.retain(|id| *id != s);
            marks.normal.push(s);
        }
        marks
    }

    /// The kind of each token: what the file says, corrected by what the names say.
    pub fn kinds(&self, spec: &TokenizerSpec) -> Result<Vec<TokenKind>, TokenizerError> {
        let mut kinds = vec![TokenKind::Normal; spec.tokens.len()];
        for (id, (kind, number)) in kinds.iter_mut().zip(&spec.token_types).enumerate() {
            *kind = TokenKind::from_gguf(*number).ok_or_else(|| {
                let field = format!("tokenizer.ggml.token_type[{id}]");
                TokenizerError::field(field, format!("{number}, expected 0 to 6"))
            })?;
        }
        for (ids, kind) in [
            (&self.control, TokenKind::Control),
            (&self.user_defined, TokenKind::UserDefined),
            (&self.normal, TokenKind::Normal),
        ] {
            for id in ids {
                if let Some(slot) = kinds.get_mut(*id as usize) {
                    *slot = kind;
                }
            }
        }
        Ok(kinds)
    }
}
