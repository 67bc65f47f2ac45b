//! What the measuring commands share: the models, the method that is meant, the prompts.

use std::path::PathBuf;

use clap::Args;
use tessera_core::entry::{MethodCall, MethodEntry, find};
use tessera_engine::Model;
use tessera_measure::check::Task;
use tessera_measure::record::ModelLine;
use tessera_measure::usual::model_line;
use tessera_measure::workload::{Item, Workload};
use tessera_runtime::{METHODS, Session};

use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::{BackendName, ModelFlags};

/// The models of a measurement.
#[derive(Debug, Clone, Args)]
pub(crate) struct Models {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    pub(crate) model: String,
    /// A smaller model with the same vocabulary, for methods that draft with one.
    #[arg(long, value_name = "MODEL", env = "TESSERA_DRAFT_MODEL")]
    pub(crate) draft_model: Option<String>,
    /// Threads (default: all cores).
    #[arg(
        short = 't',
        long,
        value_name = "N",
        env = "TESSERA_THREADS",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) threads: usize,
    /// What computes: own kernels, or the candle library.
    #[arg(long, value_enum, env = "TESSERA_BACKEND", default_value_t = BackendName::Cpu)]
    pub(crate) backend: BackendName,
}

/// Loaded models.
pub(crate) struct Loaded {
    pub(crate) target: Session,
}

impl Models {
    pub(crate) fn open(&self, globals: &Globals) -> anyhow::Result<Loaded> {
        let flags = ModelFlags { context: None, threads: self.threads, backend: self.backend };
        let target = flags.open(globals, &self.model, self.draft_model.as_deref())?;
        Ok(Loaded { target })
    }

    /// The flags again, as typed, without those at their default.
    pub(crate) fn command(&self) -> String {
        // Where someone keeps models is nobody's business.
        let shown = |name: &str| match name.starts_with(['/', '~']) {
            true => file_name(name),
            false => name.to_owned(),
        };
        let mut text = format!(" -m {}", shown(&self.model));
        if let Some(draft) = &self.draft_model {
            text += &format!(" --draft-model {}", shown(draft));
        }
        if self.threads != 0 {
            text += &format!(" -t {}", self.threads);
        }
        text
    }
}

impl Loaded {
    pub(crate) fn model(&self) -> Model<'_> {
        self.target.model()
    }

    /// The prompts as tokens; those that leave no room for `room` more are refused by name.
    pub(crate) fn tasks(&self, items: &[&Item], room: usize) -> anyhow::Result<Vec<Task>> {
        let context = self.target.info().context;
        let task = |item: &&Item| {
            let tokens = item.tokens(&self.target)?;
            let expected = item.expected(&self.target)?;
            let room = expected.as_ref().map_or(room, |expected| expected.length);
            if tokens.len() + room > context {
                let what = format!(
                    "{} has {} tokens: with {room} more it does not fit the context of {context}. \
                     Next: fewer tokens (-n), other prompts (--category, --workload)",
                    item.name,
                    tokens.len()
                );
                return Err(BadUsage(what).into());
            }
            let (category, name) = (item.category.clone(), item.name.clone());
            Ok(Task { category, name, tokens, expected })
        };
        items.iter().map(task).collect()
    }
}

/// A model's line in a record.
pub(crate) fn line(session: &Session) -> ModelLine {
    model_line(session, &session.info().name)
}

/// The draft model's line, if there is one; it runs on the threads of the other.
pub(crate) fn draft_line(session: &Session) -> Option<ModelLine> {
    session.info().draft_model.as_ref().map(|name| model_line(session, name))
}

/// The last part of a path.
fn file_name(path: &str) -> String {
    let name = std::path::Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |n| n.to_string_lossy().into_owned())
}

/// A call of a method with settings as they are typed, `key=value` each.
pub(crate) fn with_settings(
    entry: &MethodEntry,
    settings: &[String],
) -> anyhow::Result<MethodCall> {
    let mut call = MethodCall { id: entry.slug.to_owned(), ..MethodCall::default() };
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            let what = format!("--setting {setting}: write key=value");
            return Err(BadUsage(what).into());
        };
        let (key, value) = (key.trim(), value.trim());
        call.settings.insert(key.to_owned(), entry.value(key, value)?);
    }
    Ok(call)
}

/// The method of a measurement.
#[derive(Debug, Clone, Args)]
pub(crate) struct Chosen {
    /// The method, by slug or another name it answers to (`tessera methods` lists them).
    pub(crate) slug: String,
    /// A setting of the method; may be given several times.
    #[arg(long = "setting", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Another method to combine it with, as `slug` or `slug:key=value,...`: an acceptance rule
    /// for a drafter, a drafter for an acceptance rule. May be given several times.
    #[arg(long = "method", value_name = "METHOD")]
    pub(crate) with: Vec<String>,
}

impl Chosen {
    pub(crate) fn entry(&self) -> anyhow::Result<&'static MethodEntry> {
        Ok(find(METHODS, &self.slug)?)
    }

    /// The method with its settings, and the others.
    pub(crate) fn calls(&self) -> anyhow::Result<(MethodCall, Vec<MethodCall>)> {
        let call = with_settings(self.entry()?, &self.settings)?;
        let with = self.with.iter().map(|text| MethodCall::parse(METHODS, text));
        Ok((call, with.collect::<tessera_core::Result<_>>()?))
    }

    pub(crate) fn command(&self) -> String {
        let mut text = format!(" {}", self.slug);
        for setting in &self.settings {
            text += &format!(" --setting {setting}");
        }
        for method in &self.with {
            text += &format!(" --method {method}");
        }
        text
    }
}

/// The prompts of a measurement.
#[derive(Debug, Clone, Args)]
pub(crate) struct Prompts {
    /// Your own prompts instead of the built-in ones: one a line, or a JSON object a line with
    /// `text` and, if wanted, `category`, `raw`, `answer` (how the right answer begins), `room`, `after` and
    /// `rough`.
    #[arg(long, value_name = "FILE")]
    pub(crate) workload: Option<PathBuf>,
    /// Only this category; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) category: Vec<String>,
}

impl Prompts {
    /// The prompts, as far as they are known before a model is loaded: the user's own, or ours for a method
    /// that takes no part in filling masks (`canvas`).
    pub(crate) fn known(&self, canvas: bool) -> anyhow::Result<Option<Workload>> {
        let all = match (&self.workload, canvas) {
            (Some(path), _) => Workload::read(path)?,
            (None, false) => Workload::built_in()?,
            (None, true) => return Ok(None),
        };
        Ok(Some(all.only(&self.category)?))
    }

    /// The prompts: those that are known, or ours that suit the model.
    pub(crate) fn choose(
        &self,
        known: Option<Workload>,
        session: &Session,
        canvas: bool,
    ) -> anyhow::Result<Workload> {
        match known {
            Some(all) => Ok(all),
            None => Ok(Workload::usual(session, canvas)?.only(&self.category)?),
        }
    }

    pub(crate) fn command(&self) -> String {
        let mut text = String::new();
        if let Some(path) = self.workload.as_ref().and_then(|p| p.file_name()) {
            text += &format!(" --workload {}", path.to_string_lossy());
        }
        for category in &self.category {
            text += &format!(" --category {category}");
        }
        text
    }
}
