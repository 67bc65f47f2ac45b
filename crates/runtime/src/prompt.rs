//! Prompts: plain text, or a conversation shaped by the model's own template.

use tessera_model::WeightSource;
use tessera_model::chat::{Chat, ChatError, ChatTemplate, Message};
use tessera_model::tokenizer::{HuggingFace, Special, Tokenizer};

use crate::{Error, Result};

/// What a model continues.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Text as it is. Spellings of control tokens in it stay text.
    Raw(&'a str),
    /// A conversation; the model's answer follows its last message.
    Chat(&'a [Message]),
    /// A conversation with all that a template may be given: tools, variables.
    Whole(&'a Chat),
}

/// The tokenizer of a model and, if it has one, its chat template.
pub(crate) fn texts(
    model: &str,
    weights: &dyn WeightSource,
) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    // A vocabulary with more tokens than the model has rows is refused for GGUF files when they
    // are opened; a directory's lies in a file of its own.
    let HuggingFace { spec, chat_template } = match weights.gguf() {
        Some(file) => HuggingFace::from_gguf(file.metadata())?,
        None => HuggingFace::from_directory(weights.path())?,
    };
    let (tokens, rows) = (spec.tokens.len(), weights.hyper_params().vocab);
    if tokens > rows {
        let what = format!(
            "{}: tokenizer.json has {tokens} tokens, \"vocab_size\" of config.json is {rows}. \
             Next: fetch both from the same place",
            weights.path().display()
        );
        return Err(Error::Model { what });
    }
    let tokenizer = Tokenizer::new(&spec)?;
    let template = chat_template.map(|source| ChatTemplate::new(model, &source, &tokenizer));
    let template = template.transpose()?;
    Ok((tokenizer, template))
}

/// The tokens of a prompt.
pub(crate) fn tokens(
    model: &str,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    prompt: &Prompt<'_>,
) -> Result<Vec<u32>> {
    match (prompt, template) {
        (Prompt::Raw(text), _) => Ok(tokenizer.encode_with_bos(text, Special::AsText)),
        (Prompt::Chat(messages), Some(template)) => {
            Ok(template.encode(tokenizer, &Chat::answer_to(messages.to_vec()))?)
        }
        (Prompt::Whole(chat), Some(template)) => Ok(template.encode(tokenizer, chat)?),
        (Prompt::Chat(_) | Prompt::Whole(_), None) => {
            Err(ChatError::NoTemplate { model: model.to_owned() }.into())
        }
    }
}
