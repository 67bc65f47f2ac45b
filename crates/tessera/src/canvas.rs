//! What is known of an answer before it is made, for models that fill masks.

use clap::Args;
use tessera_core::entry::Site;
use tessera_runtime::{Holes, Request, Session};

use crate::failure::BadUsage;

/// What is known of the answer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models that fill masks")]
pub(crate) struct CanvasFlags {
    /// The answer with holes: `[MASK]` for one token, `{12}` for twelve. The rest stands as it is.
    #[arg(long, value_name = "TEXT", env = "TESSERA_TEMPLATE")]
    template: Option<String>,
    /// A rough answer, for a method that starts from one (context-aware-init, dllm-asr).
    #[arg(long, value_name = "TEXT", env = "TESSERA_PRIOR")]
    prior: Option<String>,
}

impl CanvasFlags {
    /// Puts what is known into a request to `session`.
    pub(crate) fn apply(&self, session: &Session, request: &mut Request) -> anyhow::Result<()> {
        let given = [("--template", &self.template), ("--prior", &self.prior)];
        let Some((flag, _)) = given.iter().find(|(_, text)| text.is_some()) else {
            return Ok(());
        };
        let refuse = |what: String| Err(BadUsage(what).into());
        let Some(filling) = session.filling() else {
            let name = &session.info().name;
            return refuse(format!(
                "{flag}: needs a model that fills masks; {name} writes from left to right"
            ));
        };
        let vocabulary = session.vocabulary();
        if let Some(text) = &self.template {
            let holes = Holes::read(text, vocabulary)?;
            let length = request.max_tokens.unwrap_or(holes.length);
            if length < holes.length {
                let needed = holes.length;
                return refuse(format!("-n {length}: the template takes {needed} tokens"));
            }
            request.max_tokens = Some(length);
            request.canvas.template = holes.given;
        }
        if let Some(text) = &self.prior {
            let starts = |site: Site| site == Site::Init;
            let mut members = request.recipe.members().iter();
            let Some(member) = members.find(|m| m.entry.places.iter().any(|p| starts(p.site)))
            else {
                return refuse(
                    "--prior: no method starts from it. Next: add --method context-aware-init"
                        .to_owned(),
                );
            };
            if member.settings.get("prior").is_some_and(|prior| prior == "none") {
                let slug = member.entry.slug;
                return refuse(format!(
                    "--prior: {slug} starts from masks with prior=none. Next: --method {slug}:prior=tokens"
                ));
            }
            request.canvas.prior = vocabulary.encode(text);
            request.canvas.prior.retain(|&t| t != filling.mask);
        }
        Ok(())
    }
}
