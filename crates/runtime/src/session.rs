//! A loaded model, ready to answer requests.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde::Serialize;
use tessera_core::entry::{Needs, Offer};
use tessera_core::{Backbone, Calibration, Control, Event, Filling, Vocabulary};
use tessera_engine::{Batch, Model, Outcome, Request, Sequence, Shape, generate, generate_in};
use tessera_model::arch::Blueprint;
use tessera_model::chat::ChatTemplate;
use tessera_model::store::{Located, Store};
use tessera_model::tokenizer::Tokenizer;
use tessera_model::{PROMPT_END_KEY, open_weights};

use crate::backend::{self, Backend, Loaded};
use crate::companion::Companion;
use crate::prompt::Prompt;
use crate::{Error, Result};

/// More threads than any machine has cores for; they are started at once and wait by spinning.
const MAX_THREADS: usize = 1024;

/// How a session is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Threads of every pass, at most 1024; 0 for all cores.
    pub threads: usize,
    /// What executes passes.
    pub backend: Backend,
    /// Most tokens of a sequence; `None` for what the model was trained for.
    pub context: Option<usize>,
    /// Use no network.
    pub offline: bool,
    /// A smaller model with the same vocabulary, for methods that need a draft model: a reference
    /// as [`Session::open`] takes. It runs on the same threads.
    pub draft_model: Option<String>,
}

/// Facts about a loaded model.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// The name it was opened by.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its architecture.
    pub arch: String,
    /// What executes passes, with its instruction path.
    pub detail: String,
    /// Threads of a pass.
    pub threads: usize,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Weight bytes read for one token.
    pub bytes_per_token: usize,
    /// Weight types that take a slower, generic path.
    pub generic_types: Vec<String>,
    /// Time to load it.
    pub load_seconds: f64,
    /// Whether it has a chat template.
    pub chat: bool,
    /// The name of the draft model, if there is one.
    pub draft_model: Option<String>,
    /// What ends every prompt that the model was trained on, if its file says so.
    pub prompt_end: Option<String>,
}

/// A loaded model: backbone, tokenizer, chat template.
pub struct Session {
    backbone: Box<dyn Backbone>,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    blueprint: Blueprint,
    info: Info,
    draft: Option<Companion>,
    pub(crate) calibration: OnceLock<Arc<Calibration>>,
}

/// Why `what` cannot be done with the model called `name`.
pub(crate) fn only_causal(what: &str, name: &str) -> Error {
    let what = format!(
        "{what}: is for models that write from left to right, and {name} fills masks. \
         Next: `tessera run {name} \"...\"`, or another model"
    );
    Error::Option { what }
}

/// Finds a model, fetching it if need be, in silence.
fn locate(reference: &str, options: &Options) -> Result<Located> {
    let mut store = Store::from_env()?;
    if options.offline {
        store = store.offline("the session was opened offline");
    }
    let located = store.ensure(reference)?;
    if located.entry.as_ref().is_some_and(|entry| entry.makes_embeddings()) {
        let what = format!("model = {reference}: makes embeddings and writes no text");
        return Err(Error::Option { what });
    }
    Ok(located)
}

impl Session {
    /// Finds the model that `reference` names, fetching it if need be, and loads it, in silence.
    ///
    /// # Errors
    /// Whatever keeps the model from being here or from being loaded; see [`Error`].
    pub fn open(reference: &str, options: &Options) -> Result<Self> {
        let located = locate(reference, options)?;
        Self::load(&located.name, &located.path, options, &|_| {})
    }

    /// Loads the model at `path`, and the draft model if `options` name one. `progress` hears how many bytes of weights are done, from any
    /// thread.
    ///
    /// # Errors
    /// What is wrong with the file, or with an option.
    pub fn load(
        name: &str,
        path: &Path,
        options: &Options,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        if options.threads > MAX_THREADS {
            let what = format!(
                "threads = {}: must be at most {MAX_THREADS} (0 takes all cores)",
                options.threads
            );
            return Err(Error::Option { what });
        }
        let start = Instant::now();
        let weights = open_weights(path)?;
        let blueprint = Blueprint::new(weights.hyper_params());
        let trained = blueprint.spec.context;
        let context = match options.context {
            Some(asked) if asked == 0 || asked > trained => {
                let what = format!(
                    "context = {asked}: must be between 1 and {trained}, which {name} was trained for"
                );
                return Err(Error::Option { what });
            }
            asked => asked.unwrap_or(trained),
        };
        let (tokenizer, template) = crate::prompt::texts(name, &*weights)?;
        let Loaded { backbone, detail, threads, bytes_per_token, generic_types, pool } =
            backend::load(&blueprint, &weights, options, progress)?;
        let draft = match (&options.draft_model, pool) {
            (None, _) => None,
            (Some(reference), Some(pool)) => {
                let Located { name: draft, path, .. } = locate(reference, options)?;
                let target = (name, &tokenizer as &dyn Vocabulary);
                Some(Companion::load(&draft, &path, pool, target, progress)?)
            }
            (Some(_), None) => {
                let what = "draft-model: needs --backend cpu, on whose threads both models run";
                return Err(Error::Option { what: what.to_owned() });
            }
        };
        let meta = weights.gguf().map(|file| file.metadata());
        let prompt_end = meta.and_then(|meta| meta.get_str(PROMPT_END_KEY).ok().flatten());
        let prompt_end = prompt_end.map(str::to_owned);
        let info = Info {
            name: name.to_owned(),
            path: path.to_owned(),
            arch: blueprint.spec.arch.clone(),
            detail,
            threads,
            context,
            bytes_per_token,
            generic_types,
            load_seconds: start.elapsed().as_secs_f64(),
            chat: template.is_some(),
            draft_model: draft.as_ref().map(|d| d.name.clone()),
            prompt_end,
        };
        let calibration = OnceLock::new();
        Ok(Self { backbone, tokenizer, template, blueprint, info, draft, calibration })
    }

    /// Facts about the model.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What executes passes.
    pub fn backbone(&self) -> &dyn Backbone {
        &*self.backbone
    }

    /// What executes the draft model's passes, if there is one.
    pub fn draft_backbone(&self) -> Option<&dyn Backbone> {
        self.draft.as_ref().map(|draft| &*draft.backbone)
    }

    /// How the model fills masks; `None` for one that writes from left to right.
    pub fn filling(&self) -> Option<Filling> {
        self.blueprint.filling
    }

    /// Checks that the model writes from left to right, which `what` (a command, say) is made for.
    ///
    /// # Errors
    /// [`Error::Option`] naming the model, for one that fills masks.
    pub fn expect_causal(&self, what: &str) -> Result<()> {
        match self.filling() {
            None => Ok(()),
            Some(_) => Err(only_causal(what, &self.info.name)),
        }
    }

    /// Tokens as bytes.
    pub fn vocabulary(&self) -> &dyn Vocabulary {
        &self.tokenizer
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether the chat template tells the model of tools ([`Prompt::Whole`]).
    pub fn knows_tools(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::knows_tools)
    }

    /// What methods can count on, before a run.
    pub fn offer(&self) -> Offer {
        Needs {
            capabilities: self.backbone.capabilities(),
            draft_model: self.draft.is_some(),
            calibration: true,
            mask_token: self.blueprint.filling.is_some(),
            any_subset: self.blueprint.filling.is_some_and(|filling| filling.any_subset),
            ..Needs::NONE
        }
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// [`Error::Chat`] for a conversation that the model's template does not take.
    pub fn tokens(&self, prompt: &Prompt<'_>) -> Result<Vec<u32>> {
        crate::prompt::tokens(&self.info.name, &self.tokenizer, self.template.as_ref(), prompt)
    }

    /// A request for what follows `prompt`, with the default settings and this session's context.
    ///
    /// # Errors
    /// As [`Session::tokens`].
    pub fn request(&self, prompt: &Prompt<'_>) -> Result<Request> {
        let mut request = Request::new(self.tokens(prompt)?);
        request.context = Some(self.info.context);
        Ok(request)
    }

    /// An empty memory for requests that continue one another.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn sequence(&self) -> Result<Sequence> {
        Ok(Sequence::new(&*self.backbone, self.info.context.min(1024))?)
    }

    /// Answers a request on its own. See [`tessera_engine::generate`].
    ///
    /// # Errors
    /// As [`Session::generate_in`].
    pub fn generate(
        &self,
        request: &Request,
        listener: &mut dyn FnMut(Event<'_>) -> Control,
        cancel: &AtomicBool,
    ) -> Result<Outcome> {
        request.recipe.fits(&self.offer())?;
        let request = &*self.completed(request)?;
        Ok(generate(self.model(), request, listener, cancel)?)
    }

    /// Answers a request, reusing what `sequence` holds of its prompt. See
    /// [`tessera_engine::generate_in`].
    ///
    /// # Errors
    /// A method that needs what this session lacks; settings out of range; a prompt that does not
    /// fit; whatever a pass reports.
    pub fn generate_in(
        &self,
        sequence: &mut Sequence,
        request: &Request,
        listener: &mut dyn FnMut(Event<'_>) -> Control,
        cancel: &AtomicBool,
    ) -> Result<Outcome> {
        request.recipe.fits(&self.offer())?;
        let request = &*self.completed(request)?;
        Ok(generate_in(self.model(), sequence, request, listener, cancel)?)
    }

    /// A batch of requests that share passes, empty yet. Requests go in once they are
    /// [`ready`](Self::ready).
    pub fn batch(&self, shape: Shape) -> Batch<'_> {
        Batch::new(self.model(), shape)
    }

    /// Checks a request against this session and completes its recipe, for [`Batch::add`].
    ///
    /// # Errors
    /// A method that needs what this session lacks; what a calibration reports.
    pub fn ready(&self, request: Request) -> Result<Request> {
        request.recipe.fits(&self.offer())?;
        Ok(self.completed(&request)?.into_owned())
    }

    /// Bytes that a token of a text takes in a cache, in the 16-bit form of the cpu backbone's.
    pub fn cache_bytes_per_token(&self) -> usize {
        let spec = &self.blueprint.spec;
        2 * 2 * spec.kv_heads * spec.head_dim * spec.layers
    }

    /// The request with a recipe that knows all it needs ([`Session::prepared`]).
    fn completed<'a>(&self, request: &'a Request) -> Result<Cow<'a, Request>> {
        if !request.recipe.lacks_calibration() {
            return Ok(Cow::Borrowed(request));
        }
        let recipe = self.prepared(&request.recipe)?;
        Ok(Cow::Owned(Request { recipe, ..request.clone() }))
    }

    /// Bytes of keys and values that one token reads after `context` others, in the 16-bit form
    /// of the cpu backbone's cache.
    pub fn cache_bytes_read(&self, context: usize) -> usize {
        let spec = &self.blueprint.spec;
        let row = 2 * 2 * spec.kv_heads * spec.head_dim;
        let rows = |window: Option<u32>| context.min(window.map_or(usize::MAX, |w| w as usize));
        self.blueprint.layers.iter().map(|l| rows(l.window) * row).sum()
    }

    /// The model as a loop sees it.
    pub fn model(&self) -> Model<'_> {
        let draft = self.draft_backbone();
        let filling = self.blueprint.filling;
        Model { backbone: &*self.backbone, vocabulary: &self.tokenizer, draft, filling }
    }
}
