//! Prompts: plain text, or a conversation shaped by the model's own template.

use tessera_model::WeightSource;
use tessera_model::chat::{Chat, ChatError, ChatTemplate, Message};
use tessera_model::tokenizer::{Special, Tokenizer, TokenizerSpec};

use crate::{Error, Result};

/// What a model continues.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Text as it is. Spellings of control tokens in it stay text.
    Raw(&'a str),
    /// A conversation; the model's answer follows its last message.
    Chat(&'a [Message]),
}

/// The tokenizer of a model and, if it has one, its chat template.
pub(crate) fn texts(
    model: &str,
    weights: &dyn WeightSource,
) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let Some(file) = weights.gguf() else {
        let what = format!("{model} has no tokenizer that can be read. Next: use its GGUF file");
        return Err(Error::Option { what });
    };
    let tokenizer = Tokenizer::new(&TokenizerSpec::from_gguf(file.metadata())?)?;
    let template = ChatTemplate::from_gguf(model, file.metadata(), &tokenizer)?;
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
        (Prompt::Chat(_), None) => Err(ChatError::NoTemplate { model: model.to_owned() }.into()),
    }
}
