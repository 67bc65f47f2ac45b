//! What can go wrong in a pass, a plan or a cache operation.

/// An error of a pass, a plan, a cache operation or a method's configuration.
///
/// Every variant carries what was found and, where there is one, the next step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pass whose parts do not fit one another or the model.
    #[error("pass: {what}")]
    Pass {
        /// The field and what was wrong with it.
        what: String,
    },
    /// A pass asks for something that the backbone does not offer.
    #[error("backbone `{backbone}` does not offer {missing}")]
    Unsupported {
        /// The backbone's name.
        backbone: String,
        /// Everything that is missing, comma separated.
        missing: String,
    },
    /// A plan that breaks one of the laws of keep-plans.
    #[error("plan: {what}")]
    Plan {
        /// The law and where it broke.
        what: String,
    },
    /// A cache operation that names rows which are not there, or asks for too much.
    #[error("cache: {what}")]
    Cache {
        /// The operation and the bound it broke.
        what: String,
    },
    /// More tokens than the context holds.
    #[error(
        "the context is full: {needed} tokens are needed and {limit} fit; \
         shorten the prompt or raise -c (the model was trained for {trained})"
    )]
    ContextFull {
        /// Tokens that would have to be held.
        needed: usize,
        /// Tokens that fit.
        limit: usize,
        /// The model's own context length.
        trained: usize,
    },
    /// A method's settings are out of range.
    #[error("method `{method}`: {what}")]
    Method {
        /// The method's slug.
        method: String,
        /// The field and the range it must lie in.
        what: String,
    },
    /// A name that is not in the registry.
    #[error("no method is called `{name}`{}", nearest_hint(.nearest))]
    UnknownMethod {
        /// The name as given.
        name: String,
        /// The nearest valid names, best first.
        nearest: Vec<String>,
    },
    /// A setting outside its range.
    #[error("{name} = {value}: must be {range}")]
    Setting {
        /// The setting, as the command line names it (without dashes in front).
        name: &'static str,
        /// The value as given.
        value: String,
        /// What it must be.
        range: &'static str,
    },
    /// A constraint that cannot be read, met or answered.
    #[error("constraint: {what}")]
    Constraint {
        /// What is wrong, where, and what to do.
        what: String,
    },
    /// Numbers that are no distribution over tokens.
    #[error("logits: {what}; the model file may be damaged (`tessera pull` checks and repairs it)")]
    Logits {
        /// What was found and where.
        what: String,
    },
    /// A failure inside a backbone (an accelerator error, say).
    #[error("backbone `{backbone}`: {what}")]
    Backbone {
        /// The backbone's name.
        backbone: String,
        /// What its library reported.
        what: String,
    },
}

impl Error {
    /// A [`Error::Pass`] from any text.
    pub fn pass(what: impl Into<String>) -> Self {
        Self::Pass { what: what.into() }
    }

    /// A [`Error::Plan`] from any text.
    pub fn plan(what: impl Into<String>) -> Self {
        Self::Plan { what: what.into() }
    }

    /// A [`Error::Setting`] from its parts.
    pub fn setting(name: &'static str, value: impl ToString, range: &'static str) -> Self {
        Self::Setting { name, value: value.to_string(), range }
    }

    /// A [`Error::Logits`] from any text.
    pub fn logits(what: impl Into<String>) -> Self {
        Self::Logits { what: what.into() }
    }

    /// A [`Error::Constraint`] from any text.
    pub fn constraint(what: impl Into<String>) -> Self {
        Self::Constraint { what: what.into() }
    }

    /// A [`Error::Cache`] from any text.
    pub fn cache(what: impl Into<String>) -> Self {
        Self::Cache { what: what.into() }
    }
}

fn nearest_hint(nearest: &[String]) -> String {
    match nearest {
        [] => "; `tessera methods` lists them".to_owned(),
        [one] => format!("; did you mean `{one}`?"),
        many => format!("; did you mean one of {}?", many.join(", ")),
    }
}
