//! Long because everything that a method says about itself is read in one place.
//!
//! What a method says about itself: its entry in the registry, and how its settings are read.
//!
//! Every entrance (command line, TOML, request, Rust) reduces to a [`MethodCall`]: an id and a map
//! of settings. [`MethodEntry::resolve`] turns it into the full, validated map, with unknown names
//! refused and the nearest right one suggested.

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::accept::Accept;
use crate::backbone::Capabilities;
use crate::constrain::{ConstrainedSampler, Constraint};
use crate::draft::Draft;
use crate::layers::LayerSchedule;
use crate::reduce::Reduce;
use crate::unmask::{Unmask, Window};
use crate::{Error, Result};

/// Settings by name.
pub type Settings = Map<String, Value>;

/// What sort of thing a method is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Plays a role inside a loop.
    Policy,
    /// Owns the order of passes.
    Loop,
    /// Reads a model and produces something.
    Program,
    /// Makes weights.
    Objective,
}

/// The decision that a policy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Guesses tokens ahead.
    Draft,
    /// Decides what of a draft is committed.
    Accept,
    /// Decides what a denoising step fills.
    Unmask,
    /// Decides what is kept, merged, read or skipped.
    Reduce,
    /// Decides which tokens are allowed.
    Constrain,
}

/// Where in a role a policy sits. Two policies of one role work together if their sites differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// The role has one site only (draft, accept), or the policy takes all of them.
    Whole,
    /// Reduce: while the prompt is computed.
    Prefill,
    /// Reduce: once, after the prompt.
    AfterPrefill,
    /// Reduce: at every step.
    Decode,
    /// Reduce: the window of a denoising step.
    Window,
    /// Reduce: which layers run.
    Layers,
    /// Reduce: image tokens before the projector.
    BeforeProjector,
    /// Unmask: what the canvas starts as.
    Init,
    /// Unmask: which part of the canvas may be filled now.
    Region,
    /// Unmask: how sure each fill is.
    Score,
    /// Unmask: how many positions a step fills.
    Quota,
    /// Unmask: which fills become final, and which are masked again.
    Commit,
    /// Unmask: when a canvas is done.
    End,
    /// Constrain: which texts are allowed.
    Constraint,
    /// Constrain: how an allowed token is drawn.
    Sampler,
}

impl Site {
    /// Whether `role` has this site.
    pub fn belongs_to(self, role: Role) -> bool {
        match self {
            Self::Whole => true,
            Self::Prefill
            | Self::AfterPrefill
            | Self::Decode
            | Self::Window
            | Self::Layers
            | Self::BeforeProjector => role == Role::Reduce,
            Self::Init | Self::Region | Self::Score | Self::Quota | Self::Commit | Self::End => {
                role == Role::Unmask
            }
            Self::Constraint | Self::Sampler => role == Role::Constrain,
        }
    }
}

/// A role and a site in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The role.
    pub role: Role,
    /// The site.
    pub site: Site,
}

impl Place {
    /// Whether two policies at these places would take the same decision.
    pub fn clashes(self, other: Self) -> bool {
        self.role == other.role
            && (self.site == other.site || self.site == Site::Whole || other.site == Site::Whole)
    }
}

/// What a method promises about the tokens it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "label", rename_all = "snake_case")]
pub enum Exactness {
    /// The plain run's tokens, always.
    BitExact,
    /// The plain run's distribution.
    DistributionExact,
    /// Something may change.
    Lossy {
        /// What.
        what: &'static str,
    },
}

impl Exactness {
    /// The weaker of two promises: what a combination can promise.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Lossy { .. }, _) | (Self::DistributionExact, Self::BitExact) => self,
            _ => other,
        }
    }

    /// `bit-exact`, `distribution-exact` or `lossy`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::BitExact => "bit-exact",
            Self::DistributionExact => "distribution-exact",
            Self::Lossy { .. } => "lossy",
        }
    }
}

/// What a method cannot run without; compared with an [`Offer`] before a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Parts of a pass.
    pub capabilities: Capabilities,
    /// A second, smaller model with the same vocabulary.
    pub draft_model: bool,
    /// A model that fills masks.
    pub mask_token: bool,
    /// A model that fills masks and is causal in the order of writing, whatever that order is.
    pub any_subset: bool,
    /// A model that reads images.
    pub images: bool,
    /// To look at canvases that are not the text's ([`crate::Look`]).
    pub looks: bool,
    /// That nothing looks at other canvases than the text's: what it keeps goes by that one alone.
    pub unlooked: bool,
    /// Measurements of this model, made beforehand.
    pub calibration: bool,
}

/// What a session has, in the terms of [`Needs`].
pub type Offer = Needs;

impl Needs {
    /// Nothing beyond a plain causal pass.
    pub const NONE: Self = Self {
        capabilities: Capabilities {
            embeddings: false,
            masks: false,
            bias: false,
            keys: false,
            writes: false,
            layers: false,
            taps: false,
            sites: false,
            condition: false,
            head_rows: false,
            plain_keys: false,
            gradients: false,
        },
        draft_model: false,
        mask_token: false,
        any_subset: false,
        images: false,
        looks: false,
        unlooked: false,
        calibration: false,
    };

    /// The names of everything that is needed and not offered.
    pub fn missing_from(&self, offer: &Offer) -> Vec<&'static str> {
        let mut names = self.capabilities.missing_from(&offer.capabilities);
        for (need, has, name) in [
            (self.draft_model, offer.draft_model, "a draft model (--draft-model)"),
            (self.mask_token, offer.mask_token, "a model that fills masks"),
            (self.any_subset, offer.any_subset, "a model trained to write any subset"),
            (self.images, offer.images, "a model that reads images"),
            (self.calibration, offer.calibration, "a calibration of this model"),
        ] {
            if need && !has {
                names.push(name);
            }
        }
        names
    }
}

/// Where a method was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Paper {
    /// Title.
    pub title: &'static str,
    /// Authors, shortened.
    pub authors: &'static str,
    /// Year of the version that is implemented.
    pub year: u16,
    /// Identifier that finds it (`arXiv:2408.08696`).
    pub id: &'static str,
}

/// A number that a paper reports.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Claim {
    /// Model, data and hardware it was measured on.
    pub setting: &'static str,
    /// What was measured.
    pub metric: &'static str,
    /// The number.
    pub value: f64,
    /// Its unit (`x`, `%`, `tokens/step`).
    pub unit: &'static str,
    /// Where in the paper.
    pub place: &'static str,
}

/// A method, ready to take part in a run. One instance per sequence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Method {
    /// Takes no part: the plain run.
    Plain,
    /// Guesses tokens ahead.
    Draft(Box<dyn Draft>),
    /// Decides what of a draft is committed.
    Accept(Box<dyn Accept>),
    /// Decides which layers a step runs.
    Layers(Box<dyn LayerSchedule>),
    /// Decides what is remembered or read.
    Reduce(Box<dyn Reduce>),
    /// Decides which texts are allowed.
    Constrain(Box<dyn Constraint>),
    /// Decides how an allowed token is drawn.
    Sample(Box<dyn ConstrainedSampler>),
    /// Runs several weighted texts that are resampled as they grow.
    Particles(Particles),
    /// Fills holes several at a time with a model that is causal in the order of writing.
    AnySubset(AnySubset),
    /// Decides what a denoising step fills.
    Unmask(Box<dyn Unmask>),
    /// Decides which rows a denoising pass computes.
    Window(Box<dyn Window>),
}

/// How the particle loop runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Particles {
    /// Texts that grow together, at least 1.
    pub count: usize,
    /// Resampled where the effective number of texts falls below this share of them, 0 to 1.
    pub threshold: f64,
}

/// How the any-subset loop runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnySubset {
    /// Holes guessed together, at least 1.
    pub guesses: usize,
    /// Whether a guess is judged by the ratio of its probabilities instead of the position's key.
    pub residual: bool,
}

/// A line of the registry.
#[derive(Debug)]
pub struct MethodEntry {
    /// The name in every interface: lower-case words joined by `-`.
    pub slug: &'static str,
    /// Other names it answers to.
    pub aliases: &'static [&'static str],
    /// The name in prose.
    pub name: &'static str,
    /// Where it was published; `None` for what needs no paper.
    pub paper: Option<Paper>,
    /// One sentence.
    pub summary: &'static str,
    /// What sort of thing it is.
    pub kind: Kind,
    /// The decisions it takes; empty for anything but a policy.
    pub places: &'static [Place],
    /// What it promises at its default settings.
    pub exactness: Exactness,
    /// What it cannot run without.
    pub needs: Needs,
    /// What its paper reports.
    pub claims: &'static [Claim],
    /// The schema of its settings ([`schema_of`]).
    pub schema: fn() -> Schema,
    /// All its settings at their defaults ([`defaults_of`]).
    pub defaults: fn() -> Settings,
    /// Settings at which it is the plain run (its baseline, for a policy of another loop), if any.
    pub neutral: Option<fn() -> Settings>,
    /// Reads, completes and validates settings ([`resolve_as`]).
    pub read: fn(&'static str, &Settings) -> Result<Settings>,
    /// Makes an instance from settings.
    pub build: fn(&Settings) -> Result<Method>,
}

/// The settings of a method. `Default` is the only home of the defaults.
pub trait MethodConfig: Serialize + DeserializeOwned + JsonSchema + Default {
    /// Checks every range.
    ///
    /// # Errors
    /// One line naming the field, the value and the range.
    fn validate(&self) -> std::result::Result<(), String>;
}

/// The settings of a method that has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NoSettings {}

impl MethodConfig for NoSettings {
    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// The schema of `C`, for [`MethodEntry::schema`].
pub fn schema_of<C: MethodConfig>() -> Schema {
    schemars::schema_for!(C)
}

/// The defaults of `C`, for [`MethodEntry::defaults`].
pub fn defaults_of<C: MethodConfig>() -> Settings {
    to_map(&C::default())
}

/// Reads `settings` as a `C`: missing fields take their defaults, unknown ones are refused.
///
/// # Errors
/// [`Error::Method`] naming the field.
pub fn read_as<C: MethodConfig>(slug: &str, settings: &Settings) -> Result<C> {
    let fail = |what: String| Error::Method { method: slug.to_owned(), what };
    let mut full = defaults_of::<C>();
    for (field, value) in settings {
        match full.get_mut(field) {
            Some(slot) => *slot = value.clone(),
            None => return Err(fail(unknown_field(field, full.keys().map(String::as_str)))),
        }
    }
    let config: C = serde_json::from_value(Value::Object(full)).map_err(|e| {
        // Which field it was is not in serde's message: find it by trying one at a time.
        let culprit = settings.iter().find(|(field, value)| {
            let mut one = defaults_of::<C>();
            one.insert((*field).clone(), (*value).clone());
            serde_json::from_value::<C>(Value::Object(one)).is_err()
        });
        fail(match culprit {
            Some((field, value)) => format!("{field} = {value}: {e}"),
            None => e.to_string(),
        })
    })?;
    config.validate().map_err(fail)?;
    Ok(config)
}

/// [`read_as`], as a full map again: for [`MethodEntry::read`].
///
/// # Errors
/// As [`read_as`].
pub fn resolve_as<C: MethodConfig>(slug: &'static str, settings: &Settings) -> Result<Settings> {
    read_as::<C>(slug, settings).map(|config| to_map(&config))
}

/// A value as JSON text would hold it: an `f32` of 0.1 is 0.1, where `serde_json::to_value` alone
/// gives the `f64` nearest to it, 0.10000000149011612.
pub fn plain_json(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn to_map<C: Serialize>(config: &C) -> Settings {
    match plain_json(config) {
        Value::Object(map) => map,
        _ => Settings::new(),
    }
}

fn unknown_field<'a>(field: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    match (nearest(field, known.iter().copied()).first(), known.is_empty()) {
        (_, true) => format!("`{field}` is no setting: it has none"),
        (Some(near), _) => format!("`{field}` is no setting; did you mean `{near}`?"),
        (None, _) => format!("`{field}` is no setting; it has {}", known.join(", ")),
    }
}

/// Up to three of `known` that look like `name`, best first.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let name = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .map(|k| {
            let contained = name.len() >= 3 && (k.contains(&name) || name.contains(k));
            (strsim::jaro_winkler(&name, k).max(if contained { 0.9 } else { 0.0 }), k)
        })
        .filter(|(score, _)| *score > 0.8)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.dedup_by_key(|(_, k)| *k);
    scored.into_iter().take(3).map(|(_, k)| k.to_owned()).collect()
}

impl MethodEntry {
    /// Whether the method answers to `name`; case, `_` and `-` do not matter.
    pub fn answers_to(&self, name: &str) -> bool {
        let plain = |s: &str| s.to_lowercase().replace('_', "-");
        let name = plain(name);
        std::iter::once(&self.slug).chain(self.aliases).any(|known| plain(known) == name)
    }

    /// Whether it takes the decision of `role` at `site`.
    pub fn takes(&self, role: Role, site: Site) -> bool {
        self.places.contains(&Place { role, site })
    }

    /// The full settings for `settings`: completed with defaults and validated.
    ///
    /// # Errors
    /// [`Error::Method`] naming the field.
    pub fn resolve(&self, settings: &Settings) -> Result<Settings> {
        (self.read)(self.slug, settings)
    }

    /// Reads `field = text`, as typed on a command line, by the type that the schema gives it.
    ///
    /// # Errors
    /// [`Error::Method`] for an unknown field or a text that is not of its type.
    pub fn value(&self, field: &str, text: &str) -> Result<Value> {
        let fail = |what: String| Error::Method { method: self.slug.to_owned(), what };
        let schema = (self.schema)();
        let root = schema.as_value();
        let properties = root.get("properties").and_then(Value::as_object);
        let Some(property) = properties.and_then(|p| p.get(field)) else {
            let known = properties.into_iter().flat_map(Map::keys).map(String::as_str);
            return Err(fail(unknown_field(field, known)));
        };
        let kinds = types(root, property, 0);
        let has = |kind: &str| kinds.iter().any(|k| k == kind);
        if has("null") && matches!(text, "none" | "null") {
            return Ok(Value::Null);
        }
        let expected = if has("integer") {
            match text.parse::<i64>().map(Value::from).or(text.parse::<u64>().map(Value::from)) {
                Ok(value) => return Ok(value),
                Err(_) => "a whole number",
            }
        } else if has("number") {
            match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                Some(value) => return Ok(Value::Number(value)),
                None => "a number",
            }
        } else if has("boolean") {
            match text {
                "true" | "yes" | "on" => return Ok(Value::Bool(true)),
                "false" | "no" | "off" => return Ok(Value::Bool(false)),
                _ => "true or false",
            }
        } else if has("array") || has("object") {
            match serde_json::from_str(text) {
                Ok(value) => return Ok(value),
                Err(_) => "JSON, such as [1,2]",
            }
        } else {
            return Ok(Value::String(text.to_owned()));
        };
        Err(fail(format!("{field} = {text}: must be {expected}")))
    }
}

/// The JSON types a schema allows, through references and alternatives.
fn types(root: &Value, schema: &Value, depth: usize) -> Vec<String> {
    if depth > 8 {
        return Vec::new();
    }
    if let Some(path) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(path.trim_start_matches('#'));
        return target.map_or_else(Vec::new, |t| types(root, t, depth + 1));
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        if let Some(list) = schema.get(word).and_then(Value::as_array) {
            return list.iter().flat_map(|s| types(root, s, depth + 1)).collect();
        }
    }
    match schema.get("type") {
        Some(Value::String(kind)) => vec![kind.clone()],
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// The entry that answers to `name`.
///
/// # Errors
/// [`Error::UnknownMethod`] with the nearest names.
pub fn find(entries: &[&'static MethodEntry], name: &str) -> Result<&'static MethodEntry> {
    entries.iter().find(|e| e.answers_to(name)).copied().ok_or_else(|| {
        let known = entries.iter().flat_map(|e| std::iter::once(&e.slug).chain(e.aliases)).copied();
        Error::UnknownMethod { name: name.to_owned(), nearest: nearest(name, known) }
    })
}

/// A method asked for by name, with the settings that were given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MethodCall {
    /// Slug or alias.
    pub id: String,
    /// Settings given; the others take their defaults.
    pub settings: Settings,
}

impl MethodCall {
    /// Reads `slug` or `slug:key=value,key=value`. Commas inside brackets, braces and double quotes
    /// belong to the value.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`], or [`Error::Method`] for an unknown field or a wrong value.
    pub fn parse(entries: &[&'static MethodEntry], text: &str) -> Result<Self> {
        let (id, rest) = text.split_once(':').unwrap_or((text, ""));
        let entry = find(entries, id.trim())?;
        let fail = |what: String| Error::Method { method: entry.slug.to_owned(), what };
        let mut settings = Settings::new();
        for part in split_outside_brackets(rest) {
            let Some((field, value)) = part.split_once('=') else {
                return Err(fail(format!("`{part}`: settings are written key=value")));
            };
            let field = field.trim().replace('-', "_");
            let value = entry.value(&field, value.trim())?;
            if settings.insert(field.clone(), value).is_some() {
                return Err(fail(format!("{field} is given twice")));
            }
        }
        Ok(Self { id: entry.slug.to_owned(), settings })
    }

    /// Reads `{"id": slug, key: value, ...}`.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`], or [`Error::Method`] if there is no id.
    pub fn from_json(entries: &[&'static MethodEntry], value: &Value) -> Result<Self> {
        let id = value.get("id").and_then(Value::as_str);
        let (Some(map), Some(id)) = (value.as_object(), id) else {
            let what = "needs an object with an `id`, such as {\"id\": \"none\"}".to_owned();
            return Err(Error::Method { method: "?".to_owned(), what });
        };
        let entry = find(entries, id)?;
        let settings = map.iter().filter(|(k, _)| *k != "id").map(|(k, v)| (k.clone(), v.clone()));
        Ok(Self { id: entry.slug.to_owned(), settings: settings.collect() })
    }
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0i32, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth <= 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|p| !p.trim().is_empty());
    parts
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
