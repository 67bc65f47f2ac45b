//! The record of a check: everything that was measured, so that it can be shown and compared later.
//!
//! `docs/records.md` describes the file for people who read it with other programs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tessera_engine::CostCurve;

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::retention::Retention;
use crate::statistics::Interval;
use crate::trial::Counts;
use crate::tuned::data_dir;

/// The form of the file. A change that old readers misread changes it.
pub const SCHEMA: &str = "tessera.check/1";

/// Largest file that is read as a record, in bytes.
const LARGEST: u64 = 16 << 20;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: String,
    /// The method.
    pub slug: String,
    /// Its name in prose.
    pub name: String,
    /// `bit-exact`, `distribution-exact` or `lossy`: the promise of the recipe that was run.
    pub exactness: String,
    /// Day of the measurement, `YYYY-MM-DD`, UTC.
    pub date: String,
    /// The program and its version.
    pub version: String,
    /// The command that repeats it.
    pub command: String,
    /// Whether it was a quick check.
    pub quick: bool,
    /// The model.
    pub model: ModelLine,
    /// The draft model, if there was one.
    pub draft_model: Option<ModelLine>,
    /// What it ran on.
    pub machine: Machine,
    /// What was generated.
    pub workload: WorkloadLine,
    /// How long a pass takes by its rows, in passes of one row.
    pub curve: CostCurve,
    /// Milliseconds of a pass of one row.
    pub row_ms: f64,
    /// The plain run, the method, what it is compared with, and the control.
    pub arms: Vec<Arm>,
    /// What the paper claims, beside what was measured.
    pub claims: Vec<ClaimLine>,
    /// Answers, cache and speed by budget, for methods that forget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// What it comes to.
    pub verdict: Verdict,
}

/// A model in a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelLine {
    /// Its name.
    pub name: String,
    /// What executes passes, with its instruction path.
    pub detail: String,
    /// Threads of a pass.
    pub threads: usize,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadLine {
    /// `built-in`, or a file's name.
    pub name: String,
    /// Prompts that were run.
    pub prompts: usize,
    /// Prompts that were planned; more than `prompts` where time ended the check.
    pub planned: usize,
    /// Times that each prompt was run with every arm.
    pub turns: usize,
    /// Most tokens of an answer.
    pub tokens: usize,
    /// Whether answers were canvases of masks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canvas: bool,
    /// How tokens were chosen.
    pub sampling: Value,
    /// The seed.
    pub seed: u64,
}

/// What an arm is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// No method: what speed is measured against.
    Plain,
    /// The strongest honest baseline of the family.
    Rival,
    /// The method, its state fresh for every prompt.
    Method,
    /// The method with the state of the prompts before.
    Hot,
    /// The same budget spent at random.
    Control,
}

/// One way to run the workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// What it is there for.
    pub part: Part,
    /// Its name in tables.
    pub label: String,
    /// Why it is there, for people.
    pub why: String,
    /// Its recipe, as a request writes it.
    pub methods: Value,
    /// All categories together.
    pub overall: Row,
    /// Each category.
    pub categories: Vec<Row>,
}

/// What an arm did on a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The category, or `overall`.
    pub category: String,
    /// Speed over the plain run's of the same prompt and turn; `None` for the plain run itself.
    pub speed: Option<Interval>,
    /// The same over all pairs of turns, as if those of a prompt were independent; `None` if each prompt ran
    /// once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Interval>,
    /// Speed over the baseline's of the same prompt and turn.
    pub over_rival: Option<Interval>,
    /// Speed over the control's of the same prompt and turn.
    pub over_control: Option<Interval>,
    /// Decoded tokens per second, the median over the runs.
    pub rate: f64,
    /// The speed that the counts, the cost curve and the time spent guessing predict, the median
    /// over the runs.
    pub predicted: f64,
    /// Tokens committed per pass, over the runs.
    pub per_pass: Interval,
    /// The counts of one turn.
    pub counts: Counts,
    /// How its texts compare with the plain run's.
    pub text: Agreement,
}

/// How texts compare with the plain run's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// Texts compared.
    pub texts: usize,
    /// Those that are equal to the last token.
    pub same: usize,
    /// Share of the plain run's tokens before the first difference, 0 to 1.
    pub share: f64,
    /// The first difference that was seen.
    pub first: Option<Divergence>,
    /// Perplexity of its texts under the plain model; only where texts may differ.
    pub perplexity: Option<f64>,
    /// Perplexity of the plain run's texts; only where texts may differ.
    pub plain_perplexity: Option<f64>,
    /// Different pairs of neighbouring tokens in its texts, as a share of all pairs, 0 to 1: a text that
    /// repeats itself has a low perplexity and few of them. Only where masks are filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<f64>,
    /// The plain run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_distinct: Option<f64>,
    /// Answers that are the right one; only where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<usize>,
}

/// Where a text leaves the plain run's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divergence {
    /// The prompt's name.
    pub prompt: String,
    /// Tokens of the answer before it.
    pub at: usize,
    /// The plain run's token there; `None` if its text ended.
    pub plain: Option<u32>,
    /// The other one.
    pub other: Option<u32>,
}

/// A claim and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimLine {
    /// What the paper measured.
    pub metric: String,
    /// On what.
    pub setting: String,
    /// Where in the paper.
    pub place: String,
    /// Its number.
    pub claimed: f64,
    /// The unit.
    pub unit: String,
    /// What was measured here; `None` if check does not measure this.
    pub measured: Option<Interval>,
    /// The control's.
    pub control: Option<f64>,
}

/// How the claim fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It holds here.
    Confirmed,
    /// There is a gain, and less than was claimed or than a simpler method has.
    Partly,
    /// No gain here.
    NotHere,
}

impl Word {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Partly => "partly",
            Self::NotHere => "not here",
        }
    }
}

/// What a check comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The word.
    pub word: Word,
    /// One sentence.
    pub reason: String,
}

impl Record {
    /// The arm that plays `part`.
    pub fn arm(&self, part: Part) -> Option<&Arm> {
        self.arms.iter().find(|a| a.part == part)
    }

    /// Whether the model fills masks: whole canvases are computed, not single rows.
    pub fn is_canvas(&self) -> bool {
        self.workload.canvas
    }

    /// The speed of the method, cold, over all categories.
    pub fn speed(&self) -> Option<Interval> {
        self.arm(Part::Method)?.overall.speed
    }

    /// The name of its file: method, model, day.
    pub fn file_name(&self) -> String {
        let plain = |s: &str| {
            let mut text: String = s
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
                .collect();
            text.make_ascii_lowercase();
            text
        };
        let model = Path::new(&self.model.name).file_name();
        let model = model.map_or_else(String::new, |m| m.to_string_lossy().into_owned());
        let quick = if self.quick { ".quick" } else { "" };
        format!("{}.{}.{}{quick}.json", plain(&self.slug), plain(&model), self.date)
    }

    /// Writes the record into `directory`, which is made if need be, over an earlier one of the
    /// same method, model and day. Returns the file.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join(self.file_name());
        let fail = |source| Error::File { path: path.clone(), source };
        std::fs::create_dir_all(directory).map_err(fail)?;
        let text = serde_json::to_string_pretty(self).map_err(|e| fail(e.into()))?;
        // A reader must never see half a record.
        let part = path.with_extension("json.part");
        std::fs::write(&part, text + "\n").map_err(fail)?;
        std::fs::rename(&part, &path).map_err(fail)?;
        Ok(path)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// A file that cannot be read, is larger than any record, is none, or is one of another schema.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |source| Error::File { path: path.to_owned(), source };
        let wrong = |what: String| Error::Content { path: path.to_owned(), what };
        if std::fs::metadata(path).map_err(fail)?.len() > LARGEST {
            return Err(wrong("is larger than any record".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(fail)?;
        Self::parse(&text).map_err(wrong)
    }

    /// Reads a record's text; what is wrong with it otherwise.
    ///
    /// # Errors
    /// One line that says what.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| format!("is no record of a check: {e}"))?;
        match value.get("schema").and_then(Value::as_str) {
            Some(SCHEMA) => {}
            Some(other) => return Err(format!("has the schema `{other}`, this reads `{SCHEMA}`")),
            None => return Err("is no record of a check: it has no `schema`".to_owned()),
        }
        let record: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        record.curve.validate().map_err(|e| e.to_string())?;
        Ok(record)
    }

    /// All records in `directory` (`*.json`, sorted by name); none if there is no such directory.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn read_all(directory: &Path) -> Result<Vec<Self>> {
        let Ok(files) = std::fs::read_dir(directory) else { return Ok(Vec::new()) };
        let mut paths: Vec<PathBuf> = files
            .filter_map(|f| Some(f.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .collect();
        paths.sort();
        paths.iter().map(|p| Self::read(p)).collect()
    }
}

/// Where records of this user go: `records` in [`data_dir`]. `get` reads a variable.
pub fn directory(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    data_dir(get).ok().map(|data| data.join("records"))
}

/// The day of a moment, `YYYY-MM-DD` in UTC, from seconds since 1970.
pub fn day(seconds: u64) -> String {
    let mut days = seconds / 86_400;
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", days + 1)
}

/// Today, as [`day`].
pub fn today() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    day(now.map_or(0, |t| t.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, want) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (1_735_689_600, "2025-01-01"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(day(seconds), want);
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let directory = tempfile::TempDir::new().unwrap();
        let record = samples::record();
        let path = record.write(&directory.path().join("new")).unwrap();
        assert_eq!(path.file_name().unwrap(), "wishful.smollm2.2026-11-27.json");
        assert_eq!(Record::read(&path).unwrap(), record);
        assert_eq!(Record::read_all(path.parent().unwrap()).unwrap(), [record]);
        assert_eq!(Record::read_all(&directory.path().join("none")).unwrap(), []);
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        let mut value = serde_json::to_value(samples::record()).unwrap();
        value["extra"] = 1.into();
        let extra = value.to_string();
        value["schema"] = "tessera.check/9".into();
        for (text, word) in [
            ("", "no record"),
            ("{}", "no `schema`"),
            ("[1]", "no `schema`"),
            (extra.as_str(), "`extra`"),
            (&value.to_string(), "tessera.check/9"),
        ] {
            let error = Record::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn records_go_where_the_environment_says() {
        let with = |set: &'static [&'static str]| {
            directory(move |name| set.contains(&name).then(|| format!("/{name}").into()))
        };
        assert_eq!(with(&["HOME"]), Some("/HOME/.local/share/tessera/records".into()));
        assert_eq!(with(&["HOME", "XDG_DATA_HOME"]), Some("/XDG_DATA_HOME/tessera/records".into()));
        assert_eq!(with(&["HOME", "TESSERA_HOME"]), Some("/TESSERA_HOME/records".into()));
        assert_eq!(with(&[]), None);
    }
}
