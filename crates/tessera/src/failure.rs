//! Errors as a person reads them: one line with a cause and a next step, and an exit code.

use std::io::ErrorKind;

use clap::error::{ContextKind, ContextValue, ErrorKind as Usage};
use tessera_core::Error as CoreError;
use tessera_learn::Error as LearnError;
use tessera_measure::Error as MeasureError;
use tessera_model::store::StoreError;
use tessera_runtime::Error as RuntimeError;

/// Something that was asked for and makes no sense; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadUsage(pub(crate) String);

/// Whether the command line was at fault.
pub(crate) fn is_usage(error: &anyhow::Error) -> bool {
    let core = |e: &CoreError| {
        matches!(
            e,
            CoreError::Setting { .. } | CoreError::Method { .. } | CoreError::UnknownMethod { .. }
        )
    };
    error.is::<BadUsage>()
        || error.downcast_ref::<StoreError>().is_some_and(StoreError::is_usage)
        || error.downcast_ref::<MeasureError>().is_some_and(MeasureError::is_usage)
        || error.downcast_ref::<LearnError>().is_some_and(LearnError::is_usage)
        || error.downcast_ref::<RuntimeError>().is_some_and(RuntimeError::is_usage)
        || error.downcast_ref::<CoreError>().is_some_and(core)
}

/// Whether the reader of a pipe has had enough: no failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let plain = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let json = error.downcast_ref::<serde_json::Error>();
    plain.or(json.and_then(serde_json::Error::io_error_kind)) == Some(ErrorKind::BrokenPipe)
}

/// A command line that cannot be read, as one line with the nearest right spelling. `command` is
/// the command that it names, if it names one.
pub(crate) fn usage_line(error: &clap::Error, command: Option<&str>) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(" ")),
        _ => None,
    };
    let rendered = error.render().to_string();
    let first = rendered.lines().next().unwrap_or("error: the command line is wrong");
    let mut line = first.strip_prefix("error: ").unwrap_or(first).trim_end_matches(':').to_owned();
    if error.kind() == Usage::MissingRequiredArgument
        && let Some(missing) = text(ContextKind::InvalidArg)
    {
        line = format!("{missing} is missing");
    }
    let suggestion =
        [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
            .into_iter()
            .find_map(text);
    if let Some(suggestion) = suggestion {
        line.push_str(&format!("; did you mean `{suggestion}`?"));
    }
    let end = if line.ends_with('?') { "" } else { "." };
    match command {
        Some(command) => format!("{line}{end} Next: `tessera {command} --help`"),
        None => format!("{line}{end} Next: `tessera --help`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_had_enough_is_no_failure() {
        let json = serde_json::to_writer(Closed, &[1, 2]).unwrap_err();
        assert!(is_broken_pipe(&json.into()));
        assert!(is_broken_pipe(&std::io::Error::from(ErrorKind::BrokenPipe).into()));
        assert!(!is_broken_pipe(&std::io::Error::from(ErrorKind::NotFound).into()));
        assert!(!is_broken_pipe(&anyhow::anyhow!("something else")));
    }
}
